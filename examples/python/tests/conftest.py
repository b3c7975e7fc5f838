"""Fixtures: a real attnd that a file's tests share, and the real input."""

import os
import pathlib
import sys

import numpy as np
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY / 'tests' / 'e2e'))
from support.server import Server  # pylint: disable=wrong-import-position


@pytest.fixture(scope='session')
def attnd_binary():
  build = os.environ.get('ATTND_BUILD_DIR', REPOSITORY / 'build' / 'release')
  binary = pathlib.Path(build) / 'server' / 'attnd'
  assert binary.exists(), f'no server at {binary}'
  return binary


@pytest.fixture(scope='module')
def server(attnd_binary):
  with Server(attnd_binary) as running:
    yield running


@pytest.fixture(params=['tcp', 'unix'])
def address(request, server):
  return getattr(server, request.param)


@pytest.fixture(scope='session')
def minilm():
  """load(name) of tests/data/minilm."""
  return lambda name: np.load(
      REPOSITORY / 'tests' / 'data' / 'minilm' / f'{name}.npy')
