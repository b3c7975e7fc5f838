"""Attacks with Benchmark, the only call that can make much work without a
large request."""

import math
import time

import grpc

from attacks.harness import attack
from support.client import Refusal

LIMIT_SECONDS = 2


def run(trial, client, timeout=60, **fields):
  """Runs a Benchmark and returns its result."""
  *_, last = client.stub.Benchmark(
      trial.pb.BenchmarkRequest(**fields), timeout=timeout)
  return last.result


@attack('benchmark-odd-sizes', sends='Benchmarks of F16 and BF16 with every '
        'number of elements modulo 32', promise='results with small errors')
def benchmark_odd_sizes(trial):
  client = trial.client()
  pb = trial.pb
  shapes = [(101, 80), (33, 1), (1, 1), (15, 1), (16, 1), (17, 3), (31, 31)]
  shapes += [(n, 1) for n in trial.pick(range(2, 66), range(2, 33, 6))]
  ran = 0
  for dtype in (pb.DATA_TYPE_BF16, pb.DATA_TYPE_F16):
    for vectors, dimensions in shapes:
      result = run(trial, client, num_vectors=vectors, dimensions=dimensions,
                   dtype=dtype, repetitions=1)
      error = result.max_abs_error
      trial.require(math.isfinite(error) and error < 0.05 and
                    result.flash_time_ms > 0,
                    f'{vectors}x{dimensions}: error {error}')
      ran += 1
  trial.figure(f'{ran} benchmarks')


@attack('benchmark-limits', sends='Benchmarks of an hour, by size and by '
        'repetitions', promise='each ends a few seconds after '
        '--max-benchmark-seconds at the latest',
        settings={'max-benchmark-seconds': LIMIT_SECONDS}, seconds=120,
        health_ms=2000)
def benchmark_limits(trial):
  client = trial.client()
  allowed = (LIMIT_SECONDS + 7) * (4 if trial.sanitized else 1)
  for fields in ({'num_vectors': 32768, 'num_heads': 32, 'dimensions': 8},
                 {'num_vectors': 1, 'repetitions': 255}):
    start = time.monotonic()
    try:
      run(trial, client, timeout=allowed + 2, **fields)
      code = 'a result'
    except grpc.RpcError as error:
      refusal = Refusal(error)
      code = refusal.reason or refusal.code.name
    took = time.monotonic() - start
    trial.figure(f'{fields}: {code} after {took:.1f} s')
    trial.require(took <= allowed and code in ('a result', 'WORK_LIMIT'),
                  f'{fields}: {code} after {took:.1f} s')
