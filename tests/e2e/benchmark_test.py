"""Tests the stream of Benchmark: the order of its events, its numbers, its
limits and its end."""

import time

import grpc
import pytest

from support import work
from support.client import Refusal
from support.server import Server, poll_until

PHASES = {'prepare', 'peak', 'naive', 'flash', 'verify'}


def run(client, **request):
  """Returns (progress events, result)."""
  events = list(client.stub.Benchmark(
      client.pb.BenchmarkRequest(**request), timeout=600))
  kinds = [event.WhichOneof('event') for event in events]
  assert kinds[-1] == 'result' and kinds.count('result') == 1
  assert set(kinds[:-1]) == {'progress'}
  return [event.progress for event in events[:-1]], events[-1].result


def test_progress_never_falls_and_one_result_is_last(client):
  progress, _ = run(client, num_vectors=256, dimensions=64, repetitions=2)
  fractions = [p.fraction for p in progress]
  assert fractions == sorted(fractions)
  assert 0 <= fractions[0] and fractions[-1] <= 1
  assert {p.phase for p in progress} <= PHASES


def test_the_time_left_shrinks(client):
  progress, _ = run(client, num_vectors=2048, dimensions=64, repetitions=6)
  left = [p.seconds_left if p.HasField('seconds_left') else None
          for p in progress]
  # A slow client gets only the last of several reports, but the events of one
  # repetition are always in this order.
  first = next(i for i, seconds in enumerate(left) if seconds is not None)
  assert 'flash' in {p.phase for p in progress[:first]}
  assert None not in left[first:]
  assert left[first] > left[-1] >= 0
  assert progress[-1].phase == 'verify' and progress[-1].fraction < 1


def test_the_result_adds_up(client):
  _, result = run(client, num_vectors=512, dimensions=32, num_heads=2,
                  repetitions=3)
  assert (result.num_queries, result.dimensions) == (512, 32)
  assert result.repetitions == 3
  assert result.flash_time_ms > 0 and result.naive_time_ms > 0
  assert result.speedup == pytest.approx(
      result.naive_time_ms / result.flash_time_ms)
  assert result.memory_reduction == pytest.approx(
      1 - result.flash_peak_bytes / result.naive_peak_bytes)
  # Naive attention stores every score at the same time.
  assert result.naive_peak_bytes >= 2 * 512 * 512 * 4
  assert 0 < result.flash_peak_bytes < result.naive_peak_bytes
  flops = 2 * (32 + 32) * 2 * 512 * 512
  assert result.stats.flops == flops
  assert result.gflops == pytest.approx(
      flops / result.flash_time_ms / 1e6, rel=1e-3)
  assert result.peak_ratio == pytest.approx(
      result.gflops / result.peak_gflops)
  assert 0 < result.max_abs_error < 1e-5
  assert 0 < result.max_rel_error


def test_one_thread_where_it_is_asked_for(client):
  _, result = run(client, num_vectors=128, threads=1, repetitions=1)
  assert result.dimensions == 128
  assert result.stats.threads == 1


@pytest.mark.parametrize('field,value', [
    ('num_vectors', 0), ('num_vectors', -1), ('dimensions', -1),
    ('dimensions', 1 << 40), ('num_heads', -1), ('dtype', 4), ('dtype', 99),
    ('block_size', -1), ('threads', -1), ('threads', 1 << 40),
    ('repetitions', -1)])
def test_wrong_requests_name_the_field(client, refused, field, value):
  request = client.pb.BenchmarkRequest(num_vectors=64)
  setattr(request, field, value)
  refusal = refused(lambda: list(client.stub.Benchmark(request, timeout=60)))
  assert (refusal.code, refusal.field) == (
      grpc.StatusCode.INVALID_ARGUMENT, field), refusal


@pytest.mark.parametrize('dtype,bound', [('F16', 5e-4), ('BF16', 5e-3)])
def test_16_bit_types(client, dtype, bound):
  request = client.pb.BenchmarkRequest(
      num_vectors=256, dimensions=32, repetitions=1,
      dtype=getattr(client.pb, f'DATA_TYPE_{dtype}'))
  *_, last = client.stub.Benchmark(request, timeout=300)
  # The averages of numbers in [-1, 1), rounded to 16 bits.
  assert 0 < last.result.max_abs_error < bound
  assert last.result.speedup > 0
  assert last.result.flash_peak_bytes == (
      4 * 256 * 32 * 2 + last.result.stats.workspace_bytes)


def longest(client):
  return client.pb.BenchmarkRequest(
      num_vectors=32768, dimensions=64, num_heads=4, repetitions=50)


def runs_again(client):
  """Returns true once the previous benchmark has stopped, because benchmarks
  run one at a time."""
  try:
    run(client, num_vectors=64, repetitions=1)
    return True
  except grpc.RpcError as error:
    refusal = Refusal(error)
    assert refusal.reason == 'TOO_MANY_REQUESTS', refusal
    return False


def test_cancel_stops_it(client):
  stream = client.stub.Benchmark(longest(client))
  assert next(stream).WhichOneof('event') == 'progress'
  stream.cancel()
  poll_until(lambda: runs_again(client), work.AT_ONCE_SECONDS,
             'a benchmark after a cancelled one')


def test_deadline_stops_it(client, refused):
  refusal = refused(
      lambda: list(client.stub.Benchmark(longest(client), timeout=2)))
  assert refusal.code == grpc.StatusCode.DEADLINE_EXCEEDED
  poll_until(lambda: runs_again(client), work.AT_ONCE_SECONDS,
             'a benchmark after an expired one')


# Blocks of memory have a multiple of 64 bytes, and most tensors do not.
@pytest.mark.parametrize('dtype', ['F32', 'F16', 'BF16'])
@pytest.mark.parametrize('num_vectors,dimensions', [
    (1, 1), (1, 17), (3, 5), (31, 33), (101, 80)])
def test_sizes_that_fill_no_line(client, dtype, num_vectors, dimensions):
  _, result = run(client, num_vectors=num_vectors, dimensions=dimensions,
                  dtype=getattr(client.pb, f'DATA_TYPE_{dtype}'), repetitions=1)
  assert result.HasField('naive_time_ms')
  assert result.max_abs_error < {'F32': 1e-5, 'F16': 1e-3, 'BF16': 1e-2}[dtype]


def test_it_ends_when_its_time_is_up(attnd, connect):
  # A thousand repetitions of this take minutes in every build.
  endless = dict(num_vectors=4096, dimensions=64, repetitions=1000)
  with Server(attnd, '--max-benchmark-seconds=0') as server:
    start = time.monotonic()
    run(connect(server.tcp), **{**endless, 'repetitions': 1})
    one = time.monotonic() - start
  limit = 2 + 4 * one
  with Server(attnd, f'--max-benchmark-seconds={limit}') as server:
    start = time.monotonic()
    progress, result = run(connect(server.tcp), **endless)
    took = time.monotonic() - start
  assert limit / 2 < took < limit + work.AT_ONCE_SECONDS
  assert progress[-1].phase == 'verify' and progress[-1].fraction < 1
  assert 0 < result.repetitions < 1000
  assert result.flash_time_ms > 0 and result.peak_gflops > 0
  assert result.max_abs_error < 1e-5


def test_no_repetition_in_time_is_an_error(attnd, connect, refused):
  with Server(attnd, '--max-benchmark-seconds=0.1') as server:
    client = connect(server.tcp)
    # Each of these takes several seconds.
    slow = client.pb.BenchmarkRequest(num_vectors=32768, repetitions=2)
    refusal = refused(lambda: list(client.stub.Benchmark(slow)))
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED, 'WORK_LIMIT'), refusal
    assert '--max-benchmark-seconds' in refusal.message
