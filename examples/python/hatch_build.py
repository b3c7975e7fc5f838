"""Makes attnd/v1/*_pb2*.py from the contract whenever the package is built."""

import pathlib

from grpc_tools import protoc
from hatchling.builders.hooks.plugin.interface import BuildHookInterface
import grpc_tools

PROTO = 'attnd/v1/attention.proto'


class StubsHook(BuildHookInterface):
  """From the repository's proto/, or the copy that an sdist carries."""

  def initialize(self, version, build_data):
    root = pathlib.Path(self.root)
    places = [root / 'proto', root.parents[1] / 'proto']
    proto = next((p for p in places if (p / PROTO).exists()), None)
    if proto is None:
      raise FileNotFoundError(f'{PROTO} is in none of {places}')
    well_known = pathlib.Path(grpc_tools.__file__).parent / '_proto'
    out = root / 'src'
    # The file's path becomes the module's: attnd.v1.attention_pb2.
    if protoc.main([
        'protoc', f'-I{proto}', f'-I{well_known}', f'--python_out={out}',
        f'--pyi_out={out}', f'--grpc_python_out={out}', PROTO
    ]):
      raise RuntimeError(f'protoc could not make stubs of {PROTO}')
