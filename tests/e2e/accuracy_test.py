"""Compares MemoryEstimate with the memory that a running server really held.

Each of some hundred random problems gets a fresh server, because a server keeps
memory of earlier calls for later ones. The server is asked for its estimate and
then gets `concurrency` calls at once, each over its own connection. Workers
wait until all of these calls have arrived, so that the calls overlap.

What the calls held is measured in two ways, each minus what the idle server
held before:

- resident: the peak of the memory that is mapped to pages (VmHWM), without the
  pages of files and of regions that the client shares. No estimate may be
  below it.
- allocated: the peak of the bytes in blocks of malloc, and the memory of the
  pool. It also counts what is allocated but never touched: gRPC allocates the
  buffer into which it reads from a connection before anything arrives. An idle
  connection has such a buffer too, so it is no part of a call.

ATTND_ACCURACY_PROBLEMS=1000 measures more problems, and ATTND_ACCURACY_SEED=2
measures others. The test prints its table: run pytest with -rP.
"""

import concurrent.futures
import contextlib
import os
import random
import statistics

import pytest

from support import memory_problems
from support.memory_problems import CONCURRENCIES, TRANSPORTS, TYPES
from support.memory_record import MemoryRecord
from support.server import Server, open_channel, poll_until

SERVICE = '/attnd.v1.AttentionService/'
MIB = 1 << 20
LARGE_BYTES = 64 * MIB  # the bar on the ratio holds above this
MOST = 1.05
# The most that gRPC allocates to read from one connection: 2.5 times what it
# may read in a turn, and blocks that are not full.
READ_BUFFER_BYTES = 4 * MIB
# The pool has smaller blocks from the self-test at the start of a server.
NEW_BLOCK_BYTES = MIB


class Measured:
  """What one problem was said to take, and what it took."""

  def __init__(self, problem, estimate, resident_bytes, allocated_bytes):
    self.problem = problem
    self.estimate_bytes = estimate.peak_bytes
    self.wire_bytes = estimate.wire_bytes
    self.workspace_bytes = estimate.workspace_bytes
    self.resident_bytes = resident_bytes
    self.allocated_bytes = allocated_bytes

  @property
  def ratio(self):
    return self.estimate_bytes / max(self.resident_bytes, 1)

  @property
  def is_close(self):
    """Whether the estimate is at most 5 % too high, apart from what no estimate
    can know: how many chunks gRPC lets the client of a stream send ahead, and
    whether calls that run at the same time use their workspaces at the same
    time. Memory that a call allocates but does not touch counts as held here:
    keys that lengths hide are never copied."""
    calls = self.problem.concurrency
    counted_bytes = self.estimate_bytes - (calls - 1) * self.workspace_bytes
    if self.problem.transport == 'STREAM':
      counted_bytes -= calls * self.wire_bytes
    return counted_bytes <= max(
        LARGE_BYTES, MOST * max(self.resident_bytes, self.allocated_bytes))

  @property
  def unreserved_per_connection(self):
    return ((self.allocated_bytes - self.estimate_bytes) /
            self.problem.concurrency)

  def __str__(self):
    return (f'{self.problem}: estimate {self.estimate_bytes / MIB:.2f} MiB, '
            f'resident {self.resident_bytes / MIB:.2f} MiB, '
            f'allocated {self.allocated_bytes / MIB:.2f} MiB')


def call(channel, problem, request):
  if problem.transport == 'STREAM':
    method = channel.stream_stream(SERVICE + 'AttentionStream')
    for _ in method(iter(request), timeout=300):
      pass
  else:
    channel.unary_unary(SERVICE + 'Attention')(request, timeout=300)


def measure(attnd, library, stubs, problem, folder):
  """Returns the Measured of a problem on a fresh server."""
  pb, pb_grpc = stubs
  record = MemoryRecord(library, folder)
  shm_socket = folder / 'shm.sock'
  with contextlib.ExitStack() as stack:
    server = stack.enter_context(Server(
        attnd, '--threads=2', f'--memory-budget-bytes={4096 * MIB}',
        f'--shm-socket={shm_socket}', environment=record.environment))
    record.attach(server)
    channels = [stack.enter_context(open_channel(server.tcp))
                for _ in range(problem.concurrency)]
    stub = pb_grpc.AttentionServiceStub(channels[0])
    estimate = stub.MemoryEstimate(
        memory_problems.estimate_request(pb, problem), timeout=60)
    if problem.transport == 'SHARED_MEMORY':
      requests = []
      for _ in channels:
        region, request = memory_problems.shared_message(
            pb, problem, shm_socket)
        stack.enter_context(region)
        requests.append(request)
    elif problem.transport == 'STREAM':
      requests = [memory_problems.stream_messages(pb, problem)] * len(channels)
    else:
      requests = [memory_problems.inline_message(pb, problem)] * len(channels)
    one = pb.Tensor(dtype='DATA_TYPE_F32', shape=[1, 1],
                    data=memory_problems.FILL * 4)
    first = pb.AttentionRequest(query=one, key=one, value=one)
    for channel in channels:
      pb_grpc.AttentionServiceStub(channel).Attention(first, timeout=60)

    outputs = 0 if problem.transport == 'SHARED_MEMORY' else estimate.output_bytes
    new_blocks = len(channels) * sum(size >= NEW_BLOCK_BYTES for size in (
        problem.copied_bytes(), outputs, estimate.workspace_bytes))
    received_bytes = len(channels) * problem.copied_bytes()
    with concurrent.futures.ThreadPoolExecutor(len(channels)) as pool:
      with record.workers_held():
        heap, mappings = record['heap_bytes'], record['mappings']
        mapped = record.mapped_bytes()
        rss, anonymous, files, shared = record.status(
            'VmRSS', 'RssAnon', 'RssFile', 'RssShmem')
        record.reset_peaks()
        calls = [pool.submit(call, channel, problem, request)
                 for channel, request in zip(channels, requests)]

        def have_arrived():
          if all(c.done() for c in calls):
            return True  # so small that no worker was needed
          # Small blocks are mapped, too, so the number of mappings does not show
          # that the last message has arrived.
          load = stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=60).load
          if (load.in_flight < len(channels) or
              record['mappings'] - mappings < new_blocks):
            return False
          return (problem.transport != 'STREAM' or
                  problem.copied_bytes() < NEW_BLOCK_BYTES or
                  record.status('RssAnon')[0] - anonymous >= received_bytes)

        poll_until(have_arrived, 300, f'arrival of {problem}')
      for done in calls:
        done.result()
    peak, files_now, shared_now = record.status('VmHWM', 'RssFile', 'RssShmem')
    resident = peak - rss - (files_now - files) - (shared_now - shared)
    allocated = (record['heap_peak_bytes'] - heap +
                 record.mapped_bytes() - mapped)
    # A drain takes longer than all of the above.
    server.kill()
    server.forget()
  return Measured(problem, estimate, resident, allocated)


def row(title, measured):
  large = [m.ratio for m in measured if m.estimate_bytes > LARGE_BYTES]
  ratios = (f'{statistics.median(large):8.3f} {max(large):8.3f}'
            if large else f'{"-":>8} {"-":>8}')
  within = sum(ratio <= MOST for ratio in large)
  below = sum(m.resident_bytes > m.estimate_bytes for m in measured)
  return (f'{title:24} {len(measured):8} {len(large):8} {ratios} {within:8} '
          f'{below:6}')


def table(measured):
  """Returns the figures of each transport, type and concurrency."""
  lines = ['                                   estimate / resident, above 64 MiB',
           f'{"":24} {"problems":>8} {"> 64 MiB":>8} {"median":>8} '
           f'{"worst":>8} {"<= 1.05":>8} {"below":>6}']
  for transport in TRANSPORTS:
    of_transport = [m for m in measured if m.problem.transport == transport]
    lines += [row(f'{transport} {dtype}', [
        m for m in of_transport if m.problem.dtype == dtype])
              for dtype in TYPES]
    lines += [row(f'{transport} x {concurrency}', [
        m for m in of_transport if m.problem.concurrency == concurrency])
              for concurrency in CONCURRENCIES]
  return '\n'.join(lines)


@pytest.fixture(scope='module')
def measured(build_dir, attnd, stubs, tmp_path_factory):
  count = int(os.environ.get('ATTND_ACCURACY_PROBLEMS', 216))
  seed = int(os.environ.get('ATTND_ACCURACY_SEED', 1))
  library = build_dir / 'tests' / 'e2e' / 'memory_record.so'
  assert library.exists(), f'no {library}'
  rng = random.Random(seed)
  print(f'seed {seed}')
  results = []
  for i in range(count):
    problem = memory_problems.random_problem(
        rng, TRANSPORTS[i % 3], CONCURRENCIES[i // 3 % 4], TYPES[i // 12 % 3])
    folder = tmp_path_factory.mktemp('server')
    results.append(measure(attnd, library, stubs, problem, folder))
    print(results[-1], flush=True)
  print(table(results))
  return results


def failures(measured, is_wrong):
  return '\n'.join(str(m) for m in measured if is_wrong(m))


def test_no_problem_held_more_than_its_estimate(measured):
  wrong = failures(measured, lambda m: m.resident_bytes > m.estimate_bytes)
  assert not wrong, wrong


def test_estimates_are_close(measured):
  wrong = failures(measured, lambda m: not m.is_close)
  assert not wrong, wrong


def test_only_read_buffers_of_connections_are_not_reserved(measured):
  wrong = failures(
      measured, lambda m: m.unreserved_per_connection > READ_BUFFER_BYTES)
  assert not wrong, wrong


def test_the_problems_cover_what_they_should(measured):
  features = {feature for m in measured for feature in m.problem.features}
  assert features >= {'lse', 'causal', 'window', 'alibi', 'sinks', 'soft_cap',
                      'output_f32', 'lengths', 'bias', 'mask', 'gqa', 'ragged'}
  assert {m.problem.layout for m in measured} == {'BHSD', 'BSHD'}
  for transport in TRANSPORTS:
    for concurrency in CONCURRENCIES:
      assert any(m.problem.transport == transport and
                 m.problem.concurrency == concurrency and
                 m.estimate_bytes > LARGE_BYTES for m in measured)
