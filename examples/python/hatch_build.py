"""Generates the parts of the package that come from the contract, each time it is
built: the descriptors of the messages, their types for editors, and the service
config."""

import pathlib
import shutil

from grpc_tools import protoc
from hatchling.builders.hooks.plugin.interface import BuildHookInterface
import grpc_tools

PROTO = 'attnd/v1/attention.proto'
SERVICE_CONFIG = 'attnd/v1/attention_grpc_service_config.json'


class ContractHook(BuildHookInterface):
  """Reads the contract from proto/ of the repository, or from its copy in an sdist."""

  def initialize(self, version, build_data):
    root = pathlib.Path(self.root)
    places = [root / 'proto', root.parents[1] / 'proto']
    proto = next((p for p in places if (p / PROTO).exists()), None)
    if proto is None:
      raise FileNotFoundError(f'{PROTO} is in none of {places}')
    well_known = pathlib.Path(grpc_tools.__file__).parent / '_proto'
    out = root / 'src'
    # attnd/v1/attention_pb2.py reads the descriptors.
    if protoc.main([
        'protoc', f'-I{proto}', f'-I{well_known}', '--include_imports',
        f'--descriptor_set_out={(out / PROTO).with_suffix(".binpb")}',
        f'--pyi_out={out}', PROTO
    ]):
      raise RuntimeError(f'protoc could not read {PROTO}')
    shutil.copyfile(proto / SERVICE_CONFIG, out / SERVICE_CONFIG)
