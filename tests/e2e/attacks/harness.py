"""Runs attacks and judges them. It has the table of attacks, the server, and
the honest clients."""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading
import time
import typing

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from support import raw_http2, reference
from support.client import Client
from support.server import (Server, ServerError, clean_environment,
                            open_channel, poll_until)

MIB = 1 << 20
BYSTANDERS = pathlib.Path(__file__).with_name('bystanders.py')
SLOTS = 16
IDLE_SECONDS = 2
DRAIN_SECONDS = 5
# The flags of every server, unless an attack sets others. A key is the name of
# a flag.
SETTINGS = {'memory-budget-bytes': 256 * MIB, 'max-in-flight': SLOTS,
            'stream-idle-timeout': IDLE_SECONDS,
            'drain-timeout': DRAIN_SECONDS, 'threads': 2}
# The factor by which the resident memory can exceed its limit.
SLACK = 1.1
# After an attack, everything has to return to its state before it within this
# time.
RECOVERY_SECONDS = 10
# How many lines about broken things are shown.
SHOWN = 6
# The connections of an attack stay open for at least this time.
LEAST_SECONDS = 1
# How many threads and descriptors gRPC can add when it needs them for the first
# time.
FEW = 6
# A probe of Kubernetes fails after this time.
HEALTH_MS = 1000
# A client that connects gives up after this time.
FRESH_MS = 2500
SANITIZER = re.compile(
    r'(ERROR: \w+Sanitizer.*|runtime error: .*|WARNING: ThreadSanitizer.*)')


class NotRunHere(Exception):
  """An attack cannot run on this machine. The text says why."""


@dataclasses.dataclass
class Attack:
  """One row of the table."""
  name: str
  run: typing.Callable
  sends: str  # what the attacker does
  promise: str  # what the attack is judged by
  settings: dict  # flags in addition to SETTINGS
  server: bool  # False: the attack starts its own
  short: bool  # part of --short
  watched: bool  # whether honest clients call during the attack
  fresh: bool  # whether they also make new connections
  health_ms: float  # most of their health checks' p99
  tolerance: float  # the part of their calls that may fail
  seconds: float  # an attack that takes longer is broken
  prefix: tuple


ATTACKS = []


def attack(name, *, sends, promise, settings=None, server=True, short=True,
           watched=True, fresh=True, health_ms=HEALTH_MS, tolerance=0.05,
           seconds=90, prefix=()):
  """Adds a function that attacks the server of a Trial to the table."""

  def add(run):
    ATTACKS.append(Attack(name, run, sends, promise, settings or {}, server,
                          short, watched, fresh, health_ms, tolerance, seconds,
                          prefix))
    return run
  return add


def arriving_bytes(settings):
  """Returns the share of memory for arriving messages with these flags, in
  bytes."""
  budget = settings['memory-budget-bytes']
  largest = settings.get('max-message-bytes', 256 * MIB)
  return max(min(max(16 * largest, 64 * MIB), budget // 2),
             largest // 4 * 5, 64 * MIB)


def promised_bytes(settings):
  """Returns how many bytes a server with these flags can hold, as
  docs/configuration.md#memory says."""
  return (settings['memory-budget-bytes'] + 256 * MIB +
          arriving_bytes(settings))


class Process:
  """Reads the resources of the server process from /proc."""

  def __init__(self, pid):
    self._folder = pathlib.Path('/proc', str(pid))

  def _status(self, name):
    for line in (self._folder / 'status').read_text().splitlines():
      if line.startswith(name + ':'):
        return int(line.split()[1])
    return 0  # the process has ended

  def peak_bytes(self):
    return self._status('VmHWM') << 10

  def resident_bytes(self):
    return self._status('VmRSS') << 10

  def forget_peak(self):
    (self._folder / 'clear_refs').write_text('5')

  def threads(self):
    return self._status('Threads')

  def files(self):
    return len(list((self._folder / 'fd').iterdir()))

  def cpu_seconds(self):
    after_name = (self._folder / 'stat').read_text().rsplit(') ', 1)[1].split()
    return sum(map(int, after_name[11:13])) / os.sysconf('SC_CLK_TCK')


class Sampler:
  """Samples threads and file descriptors, because the system does not record
  their peaks."""

  def __init__(self, process):
    self._process, self._over = process, threading.Event()
    self.threads = self.files = 0
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def _run(self):
    while not self._over.wait(0.05):
      try:
        self.threads = max(self.threads, self._process.threads())
        self.files = max(self.files, self._process.files())
      except OSError:
        return

  def stop(self):
    self._over.set()
    self._thread.join()


class Bystanders:
  """The process of honest clients, which all attacks share."""

  def __init__(self, build, seed):
    self._process = subprocess.Popen(
        [sys.executable, '-B', str(BYSTANDERS), str(build), str(seed)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=clean_environment())

  def close(self):
    self._process.stdin.close()
    self._process.wait(60)

  def _say(self, line):
    self._process.stdin.write(line + '\n')
    self._process.stdin.flush()

  def watch(self, addresses, fresh):
    self._say(' '.join(['watch', *addresses, *(['fresh'] if fresh else [])]))
    self._process.stdout.readline()

  def report(self):
    self._say('report')
    return json.loads(self._process.stdout.readline())


def percentile(numbers, percent):
  return float(np.percentile(numbers, percent)) if numbers else float('nan')


class Trial:
  """One run of one attack, with its server, its measurements and the promises
  that were broken."""

  def __init__(self, options, attack_, generated, bystanders, server,
               settings):
    self.options, self.attack = options, attack_
    self._bystanders = bystanders
    self.stubs, self.pb = generated, generated[0]
    self.server, self.settings = server, settings
    self.short, self.sanitized = options.short, options.sanitized
    self.random = random.Random(f'{options.seed} {attack_.name}')
    self.broken, self.figures = [], []
    self._stack = contextlib.ExitStack()
    self.reader = self._stack.enter_context(raw_http2.Reader())
    self.process = Process(server.process.pid) if server else None

  @property
  def binary(self):
    return self.options.build / 'server' / 'attnd'

  def pick(self, full, short):
    """Returns one size for the whole run, and another for the short run."""
    return short if self.short or self.sanitized else full

  def require(self, holds, what):
    """Records `what` as broken unless it holds. Returns whether it holds."""
    if not holds:
      self.broken.append(what)
    return bool(holds)

  def figure(self, text):
    self.figures.append(text)

  def deferred(self, close):
    """Calls close() at the end of the attack."""
    self._stack.callback(close)

  def connect(self, address=None, reads=True, **how):
    """Returns a raw connection that is closed at the end of the attack."""
    made = raw_http2.RawConnection(address or self.server.tcp,
                                   self.reader if reads else None, **how)
    self._stack.callback(made.close)
    return made

  def client(self, address=None):
    """Returns an honest client."""
    channel = open_channel(address or self.server.tcp)
    self._stack.callback(channel.close)
    return Client(self.stubs, channel)

  @contextlib.contextmanager
  def watched(self, seen):
    """Runs honest clients during a part of an attack that has none otherwise.

    Puts what they saw into `seen`.
    """
    self._bystanders.watch(self.server.addresses, False)
    try:
      yield
    finally:
      seen.update(self._bystanders.report())

  def start(self, *flags, settings=None, **how):
    """Starts a separate server for the attack, which is killed at its end."""
    server = Server(self.binary, *flags_of({**SETTINGS, **(settings or {})}),
                    *flags, **how)

    def end():
      if server.process is not None:
        server.kill()
        server.process = None
      server.__exit__(ValueError, None, None)
    self._stack.callback(end)
    server.start()
    return server

  def close(self):
    self._stack.close()


def flags_of(settings):
  """Returns the flags for the settings. None leaves a flag at its default."""
  return [f'--{name}={value}' for name, value in settings.items()
          if value is not None]


# --- what a server has to do before and after ---------------------------------


def health_of(address, seconds):
  """Returns the name of the health status that a new connection reads."""
  with open_channel(address) as channel:
    return health_on(channel, seconds)


def health_on(channel, seconds):
  """Returns the name of the health status that a channel reads, or its error."""
  try:
    return health_pb2.HealthCheckResponse.ServingStatus.Name(
        health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=seconds).status)
  except grpc.RpcError as error:
    return error.code().name


def computes(client, timeout=10):
  """Returns None if the answer to a small problem is right, and what is wrong
  otherwise."""
  rng = np.random.default_rng(1)
  tensors = [rng.standard_normal((16, 8)).astype(np.float32)
             for _ in range(3)]
  try:
    got = client.array(client.attention(*tensors, timeout=timeout).output)
    reference.assert_close(got, reference.attention(*tensors)[0],
                           reference.error_bound(tensors[2]))
    return None
  except grpc.RpcError as error:
    return f'{error.code().name}: {error.details()}'
  except AssertionError as error:
    return f'a wrong answer: {error}'


def free_slots(client, slots):
  """Returns how many of `slots` calls are admitted at once, and cancels them."""
  small = client.self_request(np.ones((4, 2), np.float32))
  # Messages of 64 KiB. All calls together need less than half of the smallest
  # budget, which is the share of a client.
  long_one = client.self_request(np.ones((1, 1 << 14, 1), np.float32))
  # Without a deadline, because the server refuses calls that could miss theirs.
  calls = [client.stub.SelfAttention.future(long_one) for _ in range(slots)]

  def full():
    if any(call.done() for call in calls):
      return True  # refused, or all had time to run
    try:
      client.stub.SelfAttention(small, timeout=10)
      return False
    except grpc.RpcError:
      return True
  try:
    # The check below takes a slot, too, so it has to wait until all calls have
    # arrived.
    time.sleep(0.1)
    with contextlib.suppress(TimeoutError):
      poll_until(full, 5, 'all slots taken')
    # The first ones may have their answers already.
    return sum(not call.done() or call.code() == grpc.StatusCode.OK
               for call in calls)
  finally:
    for call in calls:
      call.cancel()


def budget_free(client, budget):
  """Returns whether the server admits a stream that needs nearly all of the
  budget."""
  # The query and the output, in addition to 16 chunks of a MiB and the rest.
  rows = (budget - 32 * MIB) // (2 * 4 * 64)
  tensor = lambda rows: client.pb.Tensor(dtype=client.pb.DATA_TYPE_F32,
                                         shape=[rows, 64])
  header = client.pb.AttentionStreamRequest(header=client.pb.AttentionRequest(
      query=tensor(rows), key=tensor(1), value=tensor(1)))
  over = threading.Event()

  def messages():
    yield header
    over.wait(60)
  call = client.stub.AttentionStream(messages(), timeout=60)
  try:
    return next(call).HasField('header')
  except grpc.RpcError:
    return False
  finally:
    call.cancel()
    over.set()


def settled(trial, before):
  """Returns what has not yet returned to its state before the attack."""
  late = []
  for address in trial.server.addresses:
    status = health_of(address, 3)
    if status != 'SERVING':
      late.append(f'health on {address} says {status}')
  if late:
    return late
  with open_channel(trial.server.tcp) as channel:
    client = Client(trial.stubs, channel)
    wrong = computes(client)
    if wrong:
      return [f'a small call is answered {wrong}']
    slots = trial.settings['max-in-flight']
    free = free_slots(client, slots)
    if free < slots:
      late.append(f'{free} of {slots} slots are free')
    try:
      # The server returns what the calls of the line above held a little later.
      poll_until(lambda: budget_free(
          client, trial.settings['memory-budget-bytes']), 2, 'the budget')
    except TimeoutError:
      late.append('the budget is not free')
    # The server also returns what the last line held.
    time.sleep(0.2 if trial.sanitized else 0.02)
  files, threads = trial.process.files(), trial.process.threads()
  if files > before[0] + FEW:
    late.append(f'{files} descriptors, not {before[0]}')
  if threads > before[1] + FEW:
    late.append(f'{threads} threads, not {before[1]}')
  return late


# --- one attack ---------------------------------------------------------------


class OutOfTime(Exception):
  """An attack took longer than its time limit."""


def _out_of_time(*_):
  raise OutOfTime()


class Runner:
  """Runs attacks, one after another, and prints a line for each."""

  def __init__(self, options, generated):
    self._options, self._stubs = options, generated
    self._bystanders = Bystanders(options.build, options.seed)
    self._server = self._settings = self._prefix = None
    signal.signal(signal.SIGALRM, _out_of_time)

  def close(self):
    self._stop_server()
    self._bystanders.close()

  def _stop_server(self):
    """Stops the server. Returns what was wrong with how it ended."""
    if self._server is None:
      return None
    server, self._server = self._server, None
    try:
      server.__exit__(None, None, None)
    except ServerError as error:
      return f'SIGTERM afterwards: {str(error)[:200]}'
    return None

  def _ensure_server(self, chosen, settings):
    if self._server is not None and (self._settings, self._prefix) == (
        settings, chosen.prefix):
      return
    wrong = self._stop_server()
    if wrong:
      raise ServerError(wrong)
    server = Server(self._options.build / 'server' / 'attnd',
                    *flags_of(settings), prefix=chosen.prefix)
    server.start()
    self._server, self._settings = server, settings
    self._prefix = chosen.prefix

  def run(self, chosen):
    """Runs one attack. Returns 'held', 'BROKEN' or 'not run here'."""
    start = time.monotonic()
    settings = {**SETTINGS, **chosen.settings}
    signal.setitimer(signal.ITIMER_REAL,
                     chosen.seconds * (3 if self._options.sanitized else 1))
    broken, figures, reason = [], [], None
    try:
      if chosen.server:
        self._ensure_server(chosen, settings)
      trial = Trial(self._options, chosen, self._stubs, self._bystanders,
                    self._server if chosen.server else None, settings)
      broken, figures = trial.broken, trial.figures
      if chosen.server:
        self._with_server(trial)
      else:
        try:
          chosen.run(trial)
        finally:
          trial.close()
    except NotRunHere as error:
      reason = str(error)
    except OutOfTime:
      broken.append(f'not over within {chosen.seconds} s')
    except (ServerError, grpc.RpcError, OSError, AssertionError) as error:
      broken.append(f'{type(error).__name__}: {str(error)[:300]}')
    finally:
      signal.setitimer(signal.ITIMER_REAL, 0)
    if chosen.server and self._server is not None and broken:
      self._give_up_server(broken)
    verdict = ('not run here' if reason else 'BROKEN' if broken else 'held')
    self._print(chosen, verdict, figures, broken, reason,
                time.monotonic() - start)
    return verdict

  def _give_up_server(self, broken):
    """Makes the next attack get a new server."""
    if self._options.log:
      print(self._server.log()[-4000:])
    found = SANITIZER.search(self._server.log())
    if found:
      broken.append(found[1][:200])
    self._server.kill()
    self._server.process = None
    self._server.__exit__(ValueError, None, None)
    self._server = None

  def _with_server(self, trial):
    chosen, process = trial.attack, trial.process
    before = self._before(trial)
    if chosen.watched:
      self._bystanders.watch(trial.server.addresses, chosen.fresh)
    sampler = Sampler(process)
    start, cpu = time.monotonic(), process.cpu_seconds()
    process.forget_peak()
    try:
      chosen.run(trial)
      # Gives the honest clients time, so that their numbers are meaningful.
      time.sleep(max(0, LEAST_SECONDS - (time.monotonic() - start)))
    finally:
      trial.close()
      sampler.stop()
      seen = self._bystanders.report() if chosen.watched else None
    if trial.server.process.poll() is not None:
      trial.broken.append(
          f'the server ended with {trial.server.process.returncode}: '
          f'{trial.server.log()[-300:].strip()}')
      return
    peak, spent = process.peak_bytes(), process.cpu_seconds() - cpu
    self._judge_memory(trial, peak)
    trial.figure(f'{sampler.threads} threads, {sampler.files} descriptors, '
                 f'{spent:.1f} CPU s')
    if seen:
      self._judge_bystanders(trial, seen)
    self._after(trial, before)
    found = SANITIZER.search(trial.server.log())
    trial.require(not found, found and found[1][:200])

  def _before(self, trial):
    start, late = time.monotonic(), ['']
    seconds = RECOVERY_SECONDS * (3 if trial.sanitized else 1)
    while late and time.monotonic() - start < seconds:
      time.sleep(0.05)
      late = settled(trial, (1 << 20, 1 << 20))
    if late:
      raise ServerError(f'before the attack: {"; ".join(late)}')
    time.sleep(0.05)  # gRPC closes the connections of the checks
    return trial.process.files(), trial.process.threads()

  def _after(self, trial, before):
    start = time.monotonic()
    seconds = RECOVERY_SECONDS * (3 if trial.sanitized else 1)
    late = settled(trial, before)
    while late and time.monotonic() - start < seconds:
      if trial.server.process.poll() is not None:
        break
      time.sleep(0.2)
      late = settled(trial, before)
    trial.require(not late, f'{seconds} s later {"; ".join(late)}')
    if not late:
      trial.figure(f'as before after {time.monotonic() - start:.1f} s')

  def _judge_memory(self, trial, peak):
    promise = promised_bytes(trial.settings)
    text = f'RSS {peak / MIB:.0f} of {promise / MIB:.0f} MiB'
    if trial.sanitized:
      trial.figure(f'{text} (not judged: sanitizers hold more)')
      return
    trial.figure(text)
    trial.require(peak <= promise * SLACK, f'memory: {text}')

  def _judge_bystanders(self, trial, seen):
    chosen = trial.attack
    slower = 5 if trial.sanitized else 1
    p50, p99 = (percentile(seen['health_ms'], p) for p in (50, 99))
    fresh = percentile(seen['fresh_ms'], 90)
    trial.figure(f'health p50/p99, new p90 {p50:.1f}/{p99:.1f}, {fresh:.0f} ms')
    trial.require(not p99 > chosen.health_ms * slower,
                  f'health p99 {p99:.0f} ms')
    trial.require(not fresh > FRESH_MS * slower,
                  f'new connections p90 {fresh:.0f} ms')
    failed = sum(seen['failures'].values())
    trial.figure(f'calls right {seen["right"]} wrong {seen["wrong"]} refused '
                 f'{seen["refused"]}, failed {seen["failures"] or 0}')
    trial.require(not seen['wrong'], f'{seen["wrong"]} wrong answers')
    asked = seen['right'] + seen['refused'] + failed + len(seen['health_ms'])
    trial.require(failed <= chosen.tolerance * asked,
                  f'{failed} of {asked} honest calls failed: '
                  f'{seen["failures"]}')
    trial.require(seen['right'] or seen['refused'],
                  'not one honest call was answered')

  def _print(self, chosen, verdict, figures, broken, reason, seconds):
    print(f'{chosen.name:28} {verdict:12} {seconds:5.1f} s  '
          f'{reason or "; ".join(figures)}')
    for what in broken[:SHOWN]:
      print(f'{"":28}   broken: {" ".join(what.split())}')
    if len(broken) > SHOWN:
      print(f'{"":28}   and {len(broken) - SHOWN} more')
    sys.stdout.flush()
