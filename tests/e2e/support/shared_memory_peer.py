"""A client in a process of its own, to be killed, to run as another user, or in
other namespaces:

    shared_memory_peer.py BUILD_DIR SHM_SOCKET ADDRESS (small | endless) [UID]

`small` makes one call through a region and checks its answer; `endless` makes
one that never comes back. Prints "registered" before the call and "answered"
after it, or what the socket refused.
"""

import os
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
# pylint: disable=wrong-import-position
from support import reference, shared_memory, stubs, work
from support.client import Client
from support.server import open_channel


def small(client, region):
  rng = np.random.default_rng(1)
  query, key, value = rng.standard_normal((3, 2, 9, 8)).astype(np.float32)
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


def main():
  build_dir, shm_socket, address, what, *uid = sys.argv[1:]
  if uid:  # while it registers: one that may not even read our Python
    os.seteuid(int(uid[0]))
  try:
    region = shared_memory.Region(
        shm_socket, 16 * 4096 if what == 'small' else
        2 * 4 * int(np.prod(work.ENDLESS)))
  except shared_memory.Refused as error:
    sys.exit(f'refused: {error.text}')
  if uid:
    os.seteuid(0)
  with region, open_channel(address) as channel:
    print('registered', flush=True)
    client = Client(stubs.load(pathlib.Path(build_dir)), channel)
    (small if what == 'small' else endless)(client, region)
    print('answered', flush=True)


if __name__ == '__main__':
  main()
