"""Generates and imports the Python stubs of the public contract.

The stubs are stored under a name that depends on the content of the contract,
so generating them twice, or in two processes at once, is safe and takes no
time.
"""

import hashlib
import importlib
import os
import pathlib
import shutil
import sys
import tempfile

import grpc_tools
from grpc_tools import protoc

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
PROTO_ROOT = REPOSITORY / 'proto'
PROTO = 'attnd/v1/attention.proto'


def load(build_dir):
  """Returns (attention_pb2, attention_pb2_grpc), generated below build_dir."""
  content = (PROTO_ROOT / PROTO).read_bytes()
  kept = (pathlib.Path(build_dir) / 'stubs' /
          hashlib.sha256(content).hexdigest()[:16])
  if not kept.exists():
    _generate(kept)
  sys.path.insert(0, str(kept))
  return (importlib.import_module('attnd.v1.attention_pb2'),
          importlib.import_module('attnd.v1.attention_pb2_grpc'))


def _generate(target):
  target.parent.mkdir(parents=True, exist_ok=True)
  fresh = tempfile.mkdtemp(dir=target.parent)
  well_known = pathlib.Path(grpc_tools.__file__).parent / '_proto'
  failed = protoc.main([
      'protoc', f'-I{PROTO_ROOT}', f'-I{well_known}', f'--python_out={fresh}',
      f'--grpc_python_out={fresh}', PROTO
  ])
  if failed:
    raise RuntimeError(f'protoc could not make stubs of {PROTO}')
  try:
    os.rename(fresh, target)
  except OSError:  # another process was first
    shutil.rmtree(fresh)
