"""Calls a server in worker processes, and prints the errors that reach the parent.
errors_test.py runs this by itself, since the parent of a forked worker must not
have used gRPC.

    python pool_worker.py START_METHOD ADDRESS
"""

import concurrent.futures
import multiprocessing
import sys

import attnd
import numpy as np


def refused(address):
  two, three = np.ones((1, 2), np.float32), np.ones((1, 3), np.float32)
  with attnd.Client(address) as client:
    client.attention(two, three, two)


def answered(address):
  with attnd.Client(address) as client:
    return client.self_attention(np.ones((2, 4), np.float32), return_lse=True)


def no_region(message):
  raise attnd.RegionRefused(message)


def raised_by(call):
  try:
    return f'no error but {call()}'
  except (attnd.AttndError, attnd.RegionRefused) as error:
    return error


def main():
  method, address = sys.argv[1:]
  context = multiprocessing.get_context(method)
  with concurrent.futures.ProcessPoolExecutor(1, context) as executor:
    with context.Pool(1) as pool:
      for call in (lambda: executor.submit(refused, address).result(),
                   lambda: pool.apply(refused, (address,)),
                   lambda: executor.submit(no_region, 'why').result()):
        error = raised_by(call)
        print(type(error).__name__, error, getattr(error, 'code', None),
              getattr(error, 'field', None), getattr(error, 'reason', None),
              sep=' | ')
      result = executor.submit(answered, address).result()
      print(result.output.shape, result.lse.dtype, bool(result.stats.isa))


if __name__ == '__main__':
  main()
