"""Computes attention of a real transformer layer on an attnd server, compares it
with float64, measures the smallest call, and shows the error of a wrong request.

    python main.py (HOST:PORT | unix:PATH) FOLDER
"""

import pathlib
import statistics
import sys
import time

import attnd
import numpy as np

ALLOWED_ERROR = 1.3e-6  # the error of PyTorch's float32 kernel on the same data
TIMED_CALLS = 500


def real_attention(client, folder):
  """Returns how far the answer is from the expected output."""
  query, key, value, expected = (
      np.load(folder / f'{name}.npy')
      for name in ('query', 'key', 'value', 'expected'))
  start = time.perf_counter()
  result = client.attention(query, key, value)
  took = time.perf_counter() - start
  stats = result.stats
  computed = stats.compute_time.ToTimedelta().total_seconds()
  print(f'attention     {result.output.shape} by {stats.isa} {stats.kernel} on '
        f'{stats.threads} thread(s): {computed * 1e3:.2f} ms of '
        f'{took * 1e3:.2f} ms')
  return np.max(np.abs(result.output - expected))


def streamed_call(client):
  """Sends tensors in chunks. Only the memory budget of the server limits how
  large they can be."""
  large = np.random.default_rng(1).standard_normal(
      (100_000, 64), dtype=np.float32)
  result = client.attention_stream(large[:100], large, large, scale=0)
  # With a scale of 0, every key has the same weight.
  error = np.max(np.abs(result.output - large.mean(axis=0)))
  print(f'streamed      {large.nbytes * 2 >> 20} MiB in chunks, off by '
        f'{error:.1e}')


def smallest_call(client):
  """Returns the p50 of a call that only goes to the server and back, in us."""
  one = np.ones((1, 1), np.float32)
  times = []
  for _ in range(TIMED_CALLS):
    start = time.perf_counter()
    client.attention(one, one, one)
    times.append(time.perf_counter() - start)
  return statistics.median(times) * 1e6


def refused_call(client):
  """Sends a key with the wrong head_dim, and prints the error, which names it."""
  two, three = np.ones((1, 2), np.float32), np.ones((1, 3), np.float32)
  try:
    client.attention(two, three, two)
  except attnd.InvalidArgument as error:
    print(f'refused       {error.code.name}, {error.reason} in {error.field}')
    print(f'              {error.field_violations[0].description}')


def main():
  if len(sys.argv) != 3:
    sys.exit('usage: main.py (HOST:PORT | unix:PATH) FOLDER')
  with attnd.Client(sys.argv[1]) as client:
    worst = real_attention(client, pathlib.Path(sys.argv[2]))
    print(f'worst error   {worst:.3e}, allowed {ALLOWED_ERROR:.1e}')
    streamed_call(client)
    print(f'smallest call p50 {smallest_call(client):.1f} us of {TIMED_CALLS}')
    refused_call(client)
  return 0 if worst <= ALLOWED_ERROR else 1


if __name__ == '__main__':
  sys.exit(main())
