"""A client in a separate process, which tests kill, run as another user, or
run in other namespaces:

    shared_memory_peer.py BUILD_DIR SHM_SOCKET ADDRESS
                          (small | endless | inline) [UID [GROUP]]

`small` makes one call through a region and checks its answer. `endless` makes
a call that does not end. `inline` makes a call without a region. The program
prints "registered" before a call with a region and "answered" after each call,
or which side refused what. With a UID, it runs as that user, whose only
additional group is GROUP.
"""

import contextlib
import os
import pathlib
import sys

import grpc
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
# pylint: disable=wrong-import-position
from support import reference, shared_memory, stubs, work
from support.client import Client
from support.server import open_channel

# This is done here, because NumPy loads further modules when it is first used.
RNG = np.random.default_rng(1)


def small(client, region):
  query, key, value = RNG.standard_normal((3, 2, 9, 8)).astype(np.float32)
  response = client.stub.Attention(
      shared_memory.request_of(client, region, query, key, value), timeout=60)
  expected, _ = reference.attention(query, key, value)
  reference.assert_close(
      shared_memory.answer_of(client, region, response.output), expected,
      reference.error_bound(value))


def endless(client, region):
  size = 4 * int(np.prod(work.ENDLESS))
  request = client.pb.SelfAttentionRequest(
      sequence=region.tensor(client, 0, np.ones(work.ENDLESS, np.float32)))
  request.options.output_region.CopyFrom(region.place(client.pb, size))
  client.stub.SelfAttention(request)


def inline(client):
  client.stub.SelfAttention(work.small_request(client), timeout=60)


def become(uid, group=None):
  """Changes the user and the group of this process for good."""
  os.setgroups([int(group)] if group else [])
  os.setresgid(int(uid), int(uid), int(uid))
  os.setresuid(int(uid), int(uid), int(uid))


def main():
  build_dir, shm_socket, address, what, *user = sys.argv[1:]
  # This is loaded first, because the other user may not be able to read these
  # files.
  made = stubs.load(pathlib.Path(build_dir))
  if user:
    become(*user)
  with contextlib.ExitStack() as stack:
    if what != 'inline':
      try:
        region = stack.enter_context(shared_memory.Region(
            shm_socket, 16 * 4096 if what == 'small' else
            2 * 4 * int(np.prod(work.ENDLESS))))
      except shared_memory.Refused as error:
        sys.exit(f'refused: {error.text}')
      except PermissionError as error:
        sys.exit(f'{shm_socket}: {error.strerror}')
      print('registered', flush=True)
    client = Client(made, stack.enter_context(open_channel(address)))
    try:
      if what == 'inline':
        inline(client)
      else:
        (small if what == 'small' else endless)(client, region)
    except grpc.RpcError as error:
      sys.exit(f'{address}: {error.code()}: {error.details()}')
    print('answered', flush=True)


if __name__ == '__main__':
  main()
