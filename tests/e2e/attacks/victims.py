"""Clients that are killed in the middle of a call, for ./dev chaos --mixed.

    victims.py BUILD_DIR ADDRESS SHM_SOCKET

Each line of stdin is a kind of client. The process forks it, which is faster
than to start Python again, and prints its process id as soon as the client is in
the middle of what it does. Whoever reads the id kills the client.
"""

import os
import pathlib
import signal
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np

from support import shared_memory, stubs, work
from support.client import Client
from support.server import open_channel

# A client that nobody kills ends by itself after this time.
LIFE_SECONDS = 60


def say_ready():
  os.write(1, f'{os.getpid()}\n'.encode())


def unary(client, _):
  """Waits for an answer."""
  call = client.stub.SelfAttention.future(work.endless_request(client))
  say_ready()
  call.exception()


def stream(client, _):
  """Has sent a part of a tensor."""
  array = np.ones((256, 64), np.float32)

  def messages():
    whole = client.messages(client.request(array, array, array),
                            chunk_bytes=4000)
    for _ in range(3):
      yield next(whole)
    say_ready()
    time.sleep(LIFE_SECONDS)
  list(client.stub.AttentionStream(messages()))


def shared(client, shm_socket):
  """Writes to tensors in shared memory while the server reads them."""
  size = 4 * int(np.prod(work.ENDLESS))
  with shared_memory.Region(shm_socket, 2 * size) as region:
    tensor = region.tensor(client, 0, np.ones(work.ENDLESS, np.float32))
    request = client.pb.SelfAttentionRequest(sequence=tensor)
    request.options.output_region.CopyFrom(region.place(client.pb, size))
    client.stub.SelfAttention.future(request)
    written = region.array(0, work.ENDLESS)
    say_ready()
    for value in range(1 << 30):
      written[...] = value


KINDS = {'unary': unary, 'stream': stream, 'shared': shared}


def main():
  build, address, shm_socket = sys.argv[1:]
  generated = stubs.load(build)
  signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the dead
  for line in sys.stdin:
    if os.fork() == 0:
      signal.alarm(LIFE_SECONDS)
      # Without this, a client that the server refuses would stay.
      threading.excepthook = lambda _: os._exit(1)
      try:
        with open_channel(address) as channel:
          KINDS[line.strip()](Client(generated, channel), shm_socket)
      finally:
        os._exit(1)


if __name__ == '__main__':
  main()
