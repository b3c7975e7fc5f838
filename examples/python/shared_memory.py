"""Computes attention of tensors in shared memory, which are not sent. Compares
the answer with that of the same call with tensors in messages, and times both.

    python shared_memory.py (HOST:PORT | unix:PATH) SHM_SOCKET
"""

import sys
import time

import attnd
import numpy as np

SHAPE = (64, 256, 64)  # [heads, seq, head_dim]


def call(client, *tensors, **options):
  """Returns the output, and the shortest of five times in ms."""
  times = []
  for _ in range(5):
    start = time.perf_counter()
    result = client.attention(*tensors, **options)
    times.append(time.perf_counter() - start)
  return result.output, 1e3 * min(times)


def main():
  if len(sys.argv) != 3:
    sys.exit('usage: shared_memory.py (HOST:PORT | unix:PATH) SHM_SOCKET')
  address, shm_socket = sys.argv[1:]
  size = 4 * 4 * int(np.prod(SHAPE))
  with (attnd.Client(address) as client,
        attnd.SharedRegion(shm_socket, size) as region):
    # The server reads the first three arrays and writes the answer to the fourth.
    query, key, value, output = (region.array(SHAPE) for _ in range(4))
    for array in (query, key, value):
      array[...] = np.random.default_rng(1).standard_normal(SHAPE)
    shared, shared_ms = call(client, query, key, value, output_region=output)
    sent, sent_ms = call(client, query.copy(), key.copy(), value.copy())
    same = np.array_equal(shared, sent)
    print(f'shared memory {"same bits" if same else "OTHER BITS"}, '
          f'{shared_ms:.2f} ms; by message {sent_ms:.2f} ms')
  return 0 if same else 1


if __name__ == '__main__':
  sys.exit(main())
