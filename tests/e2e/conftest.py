"""Fixtures: the generated stubs, the programs, and a server that the tests of
a file share."""

import os
import pathlib

import grpc
import numpy as np
import pytest

from support import problems
from support import stubs as stubs_module
from support.client import Client, Refusal
from support.server import Server, open_channel


@pytest.fixture(scope='session')
def build_dir():
  default = stubs_module.REPOSITORY / 'build' / 'release'
  return pathlib.Path(os.environ.get('ATTND_BUILD_DIR', default))


@pytest.fixture(scope='session')
def stubs(build_dir):
  return stubs_module.load(build_dir)


@pytest.fixture(scope='session')
def pb(stubs):
  return stubs[0]


@pytest.fixture(scope='session')
def attnd(build_dir, tmp_path_factory):
  """The server's program. ATTND_EMULATOR is a command that runs programs for
  another processor."""
  binary = build_dir / 'server' / 'attnd'
  assert binary.exists(), f'no server at {binary}'
  emulator = os.environ.get('ATTND_EMULATOR')
  if not emulator:
    return binary
  script = tmp_path_factory.mktemp('emulated') / 'attnd'
  script.write_text(f'#!/bin/sh\nexec {emulator} {binary.resolve()} "$@"\n')
  script.chmod(0o755)
  return script


@pytest.fixture(scope='module')
def server(attnd):
  with Server(attnd) as running:
    yield running


@pytest.fixture(scope='module')
def client(stubs, server):
  with open_channel(server.tcp) as channel:
    yield Client(stubs, channel)


@pytest.fixture
def connect(stubs):
  """connect(address) makes a client with a separate connection."""
  channels = []

  def make(address):
    channels.append(open_channel(address))
    return Client(stubs, channels[-1])

  yield make
  for channel in channels:
    channel.close()


@pytest.fixture
def refused():
  """refused(call) runs a call that must fail, and returns its Refusal."""

  def run(call):
    with pytest.raises(grpc.RpcError) as caught:
      call()
    return Refusal(caught.value)

  return run


@pytest.fixture
def rng(request):
  """Random numbers from a seed that depends only on the name of the test."""
  seed = sum(request.node.name.encode())
  print(f'seed {seed}')
  return np.random.default_rng(seed)


@pytest.fixture
def tensors(rng):
  """The query, key and value for which OPTIONS are made."""
  return [problems.normal(rng, *shape)
          for shape in (problems.QUERY, problems.KEY, problems.VALUE)]
