"""./dev soak: makes every kind of call to one server for a long time.

Each caller has its own connection and chooses at random what to do next. It
makes valid calls of every method and transport, and compares the answers with
NumPy. It also makes wrong, cancelled, late and abandoned calls, and checks how
each of them fails. At the same time, processes with running calls are killed.
The program samples the memory, the files and the threads of the server. They
must not grow during the second half, and the files have to return to their
first number when all callers are gone. The exit code is 0 only if all of this
holds.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import itertools
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import threading
import time

import grpc
import numpy as np

from support import reference, shared_memory, stubs, work
from support.client import Client, Refusal
from support.problems import KEY, OPTIONS, QUERY, VALUE, expected_options
from support.server import (Server, clean_environment, open_channel,
                            poll_until)

CALLERS = 6
BUDGET_BYTES = 128 << 20
PEER = pathlib.Path(__file__).parent / 'support' / 'shared_memory_peer.py'
# How much the memory can grow from the second quarter of the time to the last.
# The allocator causes changes that do not add up.
GROWTH, GROWTH_BYTES = 1.05, 8 << 20
# How many threads can be added: that of a benchmark, and those that gRPC starts
# and ends.
THREADS = 4


class Caller:
  """Chooses calls from a seed and makes them, one after another."""

  def __init__(self, server, shm_socket, generated, seed, counts):
    self._server, self._shm_socket = server, shm_socket
    self._stubs, self._counts = generated, counts
    self._draw = random.Random(seed)
    self._rng = np.random.default_rng(seed)
    # name: weight
    self._kinds = {self.attention: 8, self.stream: 4, self.shared: 4,
                   self.backward: 4, self.questions: 2, self.benchmark: 1,
                   self.malformed: 3, self.oversized: 2, self.cancelled: 3,
                   self.late: 3, self.hung_up: 2}

  def run(self, until):
    """Makes calls until the time is over. A wrong answer raises an
    exception."""
    while time.monotonic() < until:
      address = self._draw.choice([self._server.tcp, self._server.unix])
      with open_channel(address) as channel:
        client = Client(self._stubs, channel)
        for _ in range(self._draw.randint(1, 30)):
          kind, = self._draw.choices(list(self._kinds),
                                     self._kinds.values())
          self._counts[self._outcome(kind, client)] += 1

  def _outcome(self, kind, client):
    try:
      kind(client)
    except grpc.RpcError as error:
      # A full server can refuse any call, if it says when to retry.
      if Refusal(error).retry_info is None:
        raise
      return 'refused'
    return kind.__name__

  def _problem(self):
    """Returns tensors, and options that fit them."""
    draw = lambda shape: self._rng.standard_normal(shape).astype(np.float32)
    options = OPTIONS[self._draw.choice(list(OPTIONS))](self._rng)
    return [draw(QUERY), draw(KEY), draw(VALUE)], options

  def _check(self, output, tensors, options):
    expected, _ = reference.attention(*tensors, **expected_options(options))
    reference.assert_close(output, expected, reference.error_bound(tensors[2]))

  def attention(self, client):
    tensors, options = self._problem()
    answer = client.attention(*tensors, **options)
    self._check(client.array(answer.output), tensors, options)

  def stream(self, client):
    tensors, options = self._problem()
    answer = client.stream(client.request(*tensors, **options),
                           chunk_bytes=self._draw.choice([1000, 7000, 1 << 20]))
    self._check(client.array(answer.output), tensors, options)

  def shared(self, client):
    tensors, options = self._problem()
    gap = 1 << 16
    with shared_memory.Region(self._shm_socket, 8 * gap) as region:
      answer = client.stub.Attention(shared_memory.request_of(
          client, region, *tensors, gap=gap, **options), timeout=300)
      self._check(shared_memory.answer_of(client, region, answer.output),
                  tensors, options)

  def backward(self, client):
    tensors, options = self._problem()
    grad_output = self._rng.standard_normal(
        (*QUERY[:-1], VALUE[-1])).astype(np.float32)
    answer = client.backward(*tensors, grad_output, **options)
    expected = reference.gradients(*tensors, grad_output,
                                   **expected_options(options))
    for part, array in zip((answer.grad_query, answer.grad_key,
                            answer.grad_value), expected):
      bound = 64 * np.finfo(np.float32).eps * float(
          np.max(np.abs(array), initial=1))
      reference.assert_close(client.array(part), array, bound)

  def questions(self, client):
    info = client.stub.GetServerInfo(client.pb.GetServerInfoRequest())
    assert info.memory_budget_bytes == BUDGET_BYTES
    estimate = client.stub.MemoryEstimate(client.pb.MemoryEstimateRequest(
        batch=1, num_q_heads=8, num_kv_heads=2, q_len=4096, kv_len=4096,
        head_dim=64))
    assert 0 < estimate.flash_bytes < estimate.naive_bytes

  def benchmark(self, client):
    try:
      *_, last = client.stub.Benchmark(client.pb.BenchmarkRequest(
          num_vectors=self._draw.randint(1, 256),
          dimensions=self._draw.randint(1, 128),
          dtype=self._draw.randint(1, 3), repetitions=1), timeout=300)
      assert last.WhichOneof('event') == 'result'
    except grpc.RpcError as error:  # another benchmark runs
      if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
        raise

  def malformed(self, client):
    request = client.self_request(np.ones((8, 8), np.float32))
    request.sequence.data = request.sequence.data[:-1]
    with self._refusal(grpc.StatusCode.INVALID_ARGUMENT, 'sequence.data'):
      client.stub.SelfAttention(request, timeout=300)

  def oversized(self, client):
    # The message, the input and the output each have more than a third of the
    # budget.
    rows = BUDGET_BYTES * 3 // 8 // (4 * 64)
    with self._refusal(grpc.StatusCode.RESOURCE_EXHAUSTED):
      client.stub.SelfAttention(client.self_request(
          np.ones((1, rows, 64), np.float32)), timeout=300)

  def _endless(self, client):
    return client.self_request(np.ones((1, 200_000, 1), np.float32))

  def cancelled(self, client):
    call = client.stub.SelfAttention.future(self._endless(client))
    time.sleep(self._draw.random() * 0.05)  # at any time of its life
    call.cancel()
    assert call.code() in (grpc.StatusCode.CANCELLED,
                           grpc.StatusCode.RESOURCE_EXHAUSTED), call.code()

  def late(self, client):
    with self._refusal(grpc.StatusCode.DEADLINE_EXCEEDED):
      client.stub.SelfAttention(self._endless(client),
                                timeout=self._draw.random() * 0.1)

  def hung_up(self, client):
    """Begins a stream and leaves it in the middle of a tensor."""
    tensors, _ = self._problem()
    messages = client.messages(client.request(*tensors), chunk_bytes=4000)
    over = threading.Event()

    def some():
      yield from itertools.islice(messages, self._draw.randint(1, 4))
      over.wait(60)
    call = client.stub.AttentionStream(some(), timeout=300)
    time.sleep(self._draw.random() * 0.02)
    call.cancel()
    over.set()
    assert call.code() in (grpc.StatusCode.CANCELLED,
                           grpc.StatusCode.RESOURCE_EXHAUSTED), call.code()

  @contextlib.contextmanager
  def _refusal(self, code, field=None):
    try:
      yield
    except grpc.RpcError as error:
      refusal = Refusal(error)
      if refusal.retry_info is not None:
        raise
      assert refusal.code == code, refusal
      assert field is None or refusal.field == field, refusal
    else:
      raise AssertionError(f'served what deserves {code}')


def killed(build, server, shm_socket, counts, until):
  """Runs processes that die with a running call and a registered region."""
  while time.monotonic() < until:
    peer = subprocess.Popen(
        [sys.executable, '-B', PEER, build, shm_socket, server.tcp,
         'endless'], env=clean_environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    if peer.stdout.readline() == 'registered\n':
      time.sleep(0.05)
      counts['killed'] += 1
    peer.kill()
    peer.wait()
    time.sleep(1)


class Sampler:
  """Reads the resources of the server process from /proc."""

  def __init__(self, pid):
    self._folder = pathlib.Path('/proc', str(pid))
    self._samples = []  # (resident bytes, files, threads)

  def sample(self):
    pages = int((self._folder / 'statm').read_text().split()[1])
    self._samples.append((pages * os.sysconf('SC_PAGE_SIZE'), self.files(),
                          len(list((self._folder / 'task').iterdir()))))
    return self._samples[-1]

  def files(self):
    return len(list((self._folder / 'fd').iterdir()))

  def peaks(self):
    """Returns the peaks of the second quarter and of the last quarter of all
    samples."""
    quarter = max(1, len(self._samples) // 4)
    of = lambda samples: tuple(map(max, zip(*samples)))
    return (of(self._samples[quarter:2 * quarter] or self._samples),
            of(self._samples[-quarter:]))


def soak(options, server, shm_socket):
  """Returns the conditions that did not hold."""
  generated = stubs.load(options.build)
  counts = collections.Counter()
  sampler = Sampler(server.process.pid)
  with open_channel(server.tcp) as channel:
    assert work.refusal_of(Client(generated, channel)) is None
  files_before = sampler.files()
  start = time.monotonic()
  until = start + options.minutes * 60
  with concurrent.futures.ThreadPoolExecutor(CALLERS + 1) as pool:
    running = [pool.submit(Caller(server, shm_socket, generated,
                                  options.seed * 1000 + i, counts).run, until)
               for i in range(CALLERS)]
    running.append(pool.submit(killed, options.build, server, shm_socket,
                               counts, until))
    shown = start
    while any(not one.done() for one in running):
      if server.process.poll() is not None:
        return [f'the server died:\n{server.log()}']
      rss, files, threads = sampler.sample()
      now = time.monotonic()
      if now >= shown:
        print(f'{(now - start) / 60:6.1f} of {options.minutes:g} min  '
              f'{sum(counts.values()):8} calls  {rss / 2**20:6.0f} MiB  '
              f'{files} files  {threads} threads', flush=True)
        shown = now + options.minutes * 60 / 20
      time.sleep(0.2)
  wrong = [f'{type(e).__name__}: {e}' for one in running
           if (e := one.exception())]
  print('  '.join(f'{name} {n}' for name, n in sorted(counts.items())))
  earlier, later = sampler.peaks()
  for when, (rss, files, threads) in (('second', earlier), ('last', later)):
    print(f'at most in the {when} quarter: {rss / 2**20:.0f} MiB, {files} '
          f'files, {threads} threads')
  if later[0] > GROWTH * earlier[0] + GROWTH_BYTES:
    wrong.append('memory grows')
  if later[2] > earlier[2] + THREADS:
    wrong.append('threads grow')
  try:
    poll_until(lambda: sampler.files() <= files_before, 60,
               f'{files_before} files, as before')
  except TimeoutError as error:
    wrong.append(f'{error}, but {sampler.files()}')
  with open_channel(server.tcp) as channel:
    if (refusal := work.refusal_of(Client(generated, channel))) is not None:
      wrong.append(f'refuses afterwards: {refusal}')
  return wrong


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--build', type=pathlib.Path, required=True)
  parser.add_argument('--minutes', type=float, default=10)
  parser.add_argument('--seed', type=int, default=1)
  options = parser.parse_args()
  print(f'seed {options.seed}, {CALLERS} callers', flush=True)
  with tempfile.TemporaryDirectory() as folder:
    shm_socket = pathlib.Path(folder, 'shm.sock')
    with Server(options.build / 'server' / 'attnd',
                f'--memory-budget-bytes={BUDGET_BYTES}',
                f'--shm-socket={shm_socket}') as server:
      wrong = soak(options, server, shm_socket)
  for what in wrong:
    print(f'WRONG: {what}')
  print('it drained and ended with 0' if not wrong else 'failed')
  sys.exit(bool(wrong))


if __name__ == '__main__':
  main()
