"""Well-behaved clients with known answers, in a separate process, for
./dev chaos --mixed.

Before the faults begin, a quiet server answers every problem. These answers
are compared with NumPy, and their bits are kept: the same problem must give the
same bits from then on, on every way to a server. The process reads a plan, one
line of JSON, from stdin. It prints a line when all clients are connected, and
runs until the next line of its input. Then it prints a report as JSON:

    groups    for each group of callers: sent, answered, refused (by reason),
              the milliseconds of each answer, and when the slowest one began
              and ended
    failures  for each call that was neither answered right nor refused: the
              group, when it began and ended, the outcome and its details
"""

import array
import collections
import json
import pathlib
import random
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import grpc
import numpy as np

from support import reference, shared_memory, stubs
from support.client import Client, Refusal
from support.problems import KEY, OPTIONS, QUERY, VALUE, expected_options
from support.server import open_channel

WRONG, NO_STATUS = 'wrong answer', 'no status'
# How much longer than its deadline a call may take to end.
LATE_SECONDS = 10
PAUSE_SECONDS = 0.01
# (heads, q_len = kv_len, head_dim). The last problem has 1.3 MB of tensors.
LARGER = ((4, 130, 33), (16, 96, 64), (16, 128, 53))
# The distance of tensors in shared memory. It fits the problems of QUERY.
GAP_BYTES = 1 << 17


class Problem:
  """A request and the bits of its answer."""

  def __init__(self, client, tensors, options):
    self.tensors, self.options = tensors, options
    self.request = client.request(*tensors, **options)
    answer = client.stub.Attention(self.request, timeout=300)
    expected, _ = reference.attention(*tensors, **expected_options(options))
    reference.assert_close(client.array(answer.output), expected,
                           reference.error_bound(tensors[2]))
    self.output = answer.output.data


class Gradients:
  """A request for gradients and the bits of its answer."""

  def __init__(self, client, tensors, grad_output):
    self.request = client.backward_request(*tensors, grad_output)
    answer = client.stub.AttentionBackward(self.request, timeout=300)
    expected = reference.gradients(*tensors, grad_output)
    parts = (answer.grad_query, answer.grad_key, answer.grad_value)
    for part, numbers in zip(parts, expected):
      reference.assert_close(
          client.array(part), numbers,
          64 * np.finfo(np.float32).eps * np.max(np.abs(numbers), initial=1))
    self.output = b''.join(part.data for part in parts)


def problems_of(client, seed):
  """Returns the problems for attention, and those for gradients."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  small = [Problem(client, [draw(*QUERY), draw(*KEY), draw(*VALUE)],
                   make(rng)) for make in OPTIONS.values()]
  larger = [Problem(client, [draw(*shape) for _ in range(3)], {})
            for shape in LARGER]
  backward = [Gradients(client, [draw(*shape) for _ in range(3)], draw(*shape))
              for shape in LARGER]
  return small, larger, backward


class Caller:
  """Makes one call after another, and records how each of them ends."""

  def __init__(self, plan, group, address, shm_socket, fresh, number,
               problems):
    self._stubs, self._plan = plan['stubs'], plan
    self.group, self._address = group, address
    self._shm_socket, self._fresh = shm_socket, fresh
    self._draw = random.Random(f'{plan["seed"]} {number}')
    self._small, larger, self._backward = problems
    self._any = self._small + larger
    self.sent, self.refused = 0, collections.Counter()
    self.milliseconds = array.array('f')
    self.slowest = (0, 0, 0)
    self.failures = []
    self._channel = self._client = self._region = None

  def connect(self):
    """Connects, and returns when the server has answered."""
    if self._shm_socket is not None:
      self._region = shared_memory.Region(self._shm_socket, 8 * GAP_BYTES)
    self._open()
    self._client.stub.GetServerInfo(
        self._client.pb.GetServerInfoRequest(), timeout=60)

  def close(self):
    self._channel.close()
    if self._region is not None:
      self._region.socket.close()

  def _open(self):
    if self._channel is not None:
      self._channel.close()
    self._channel = channel_to(self._address, self._plan['authority'])
    self._client = Client(self._stubs, self._channel)

  def run(self, over):
    while not over.wait(PAUSE_SECONDS * self._draw.random()):
      if self._fresh:
        self._open()
      pause = self._call()
      if pause and over.wait(pause):
        return

  def _call(self):
    """Makes a call. Returns how long a refusal asks to wait."""
    self.sent += 1
    begin, details = time.monotonic(), ''
    try:
      outcome = self._draw.choice(
          [self._shared] if self._region is not None
          else [self._unary, self._unary, self._stream, self._gradients])()
    except grpc.FutureTimeoutError:
      outcome = NO_STATUS
    except grpc.RpcError as error:
      refusal = Refusal(error)
      if refusal.retry_info is not None:
        self.refused[refusal.reason] += 1
        return refusal.retry_info.retry_delay.ToMilliseconds() / 1e3
      outcome, details = refusal.code.name, refusal.message
    end = time.monotonic()
    if outcome is None:
      self.milliseconds.append((end - begin) * 1e3)
      self.slowest = max(self.slowest, (end - begin, begin, end))
    else:
      self.failures.append({'group': self.group, 'begin': begin, 'end': end,
                            'outcome': outcome, 'details': details})
    return 0

  def _result(self, method, request):
    """Returns the answer. The client itself could also fail to end a call."""
    seconds = self._plan['deadline']
    call = method.future(request, timeout=seconds)
    try:
      return call.result(seconds + LATE_SECONDS)
    except grpc.FutureTimeoutError:
      call.cancel()
      raise

  def _unary(self):
    problem = self._draw.choice(self._any)
    answer = self._result(self._client.stub.Attention, problem.request)
    return None if answer.output.data == problem.output else WRONG

  def _gradients(self):
    problem = self._draw.choice(self._backward)
    answer = self._result(self._client.stub.AttentionBackward, problem.request)
    got = b''.join(part.data for part in (
        answer.grad_query, answer.grad_key, answer.grad_value))
    return None if got == problem.output else WRONG

  def _stream(self):
    problem = self._draw.choice(self._any)
    answer = self._client.stream(
        problem.request, chunk_bytes=self._draw.choice([1000, 1 << 16]),
        timeout=self._plan['deadline'])
    return None if answer.output.data == problem.output else WRONG

  def _shared(self):
    problem = self._draw.choice(self._small)
    # An answer that is not written must not look like an earlier one.
    place = self._region.array(3 * GAP_BYTES, (len(problem.output),), np.uint8)
    place[...] = 0xff
    request = shared_memory.request_of(
        self._client, self._region, *problem.tensors, gap=GAP_BYTES,
        **problem.options)
    self._result(self._client.stub.Attention, request)
    return None if place.tobytes() == problem.output else WRONG


def channel_to(address, authority):
  """Opens a connection, with TLS for an address that begins with tls:."""
  if not address.startswith('tls:'):
    return open_channel(address)
  return grpc.secure_channel(
      address.removeprefix('tls:'),
      grpc.ssl_channel_credentials(pathlib.Path(authority).read_bytes()),
      options=[('grpc.use_local_subchannel_pool', 1)])


def report_of(callers):
  groups = {}
  for caller in callers:
    group = groups.setdefault(caller.group, {
        'sent': 0, 'answered': 0, 'refused': collections.Counter(),
        'milliseconds': [], 'slowest': (0, 0, 0)})
    group['sent'] += caller.sent
    group['answered'] += len(caller.milliseconds)
    group['refused'] += caller.refused
    group['milliseconds'] += caller.milliseconds.tolist()
    group['slowest'] = max(group['slowest'], caller.slowest)
  return {'groups': groups,
          'failures': [f for caller in callers for f in caller.failures]}


def main():
  plan = json.loads(sys.stdin.readline())
  plan['stubs'] = stubs.load(plan['build'])
  with open_channel(plan['quiet']) as channel:
    problems = problems_of(Client(plan['stubs'], channel), plan['seed'])
  callers = [Caller(plan, *caller, number, problems)
             for number, caller in enumerate(plan['callers'])]
  for caller in callers:
    caller.connect()
  over = threading.Event()
  threads = [threading.Thread(target=caller.run, args=(over,))
             for caller in callers]
  for thread in threads:
    thread.start()
  print('connected', flush=True)
  sys.stdin.readline()
  over.set()
  for thread in threads:
    thread.join()
  for caller in callers:
    caller.close()
  print(json.dumps(report_of(callers)), flush=True)


if __name__ == '__main__':
  main()
