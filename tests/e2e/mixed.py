"""./dev chaos --mixed: all kinds of faults at once, and calls with known answers.

One server is attacked on all its sockets. Three more run behind a real Envoy with
the configuration in deploy/envoy. Well-behaved callers use all of them in every
way, and compare the bits of each answer. The seed decides the order of the
faults and what each caller and attacker does; how these meet depends on the
machine.

A call is *refused* if its error says when to retry. It *failed by a fault* if it
ended, during a fault, with a code that the fault may cause. Every other call
without an answer is *lost*. The exit code is 0 only if no call is lost, no
answer is wrong, the resident memory keeps within what docs/configuration.md
promises plus a tenth, and every server is as before at the end.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
import types

import numpy as np

from attacks import faults
from attacks.callers import WRONG
from attacks.faults import (ENVOY, FRESH, FRESH_TLS, SHARED, TCP, TLS,
                            UNIX)
from attacks.harness import (MIB, SANITIZER, SETTINGS, SHOWN, SLACK, NotRunHere,
                             Process, Trial, flags_of, promised_bytes, settled)
from support import stubs
from support.envoy import Envoy
from support.http2 import DATA, number
from support.relay import Relay
from support.server import Server, clean_environment, poll_until

CALLERS = pathlib.Path(__file__).parent / 'attacks' / 'callers.py'
# A server that stands still cannot read what its clients have sent, and must not
# end their streams for that. So this is longer than each fault.
FLAGS = {**SETTINGS, 'stream-idle-timeout': 20}
FLEET = 3
# How long after a fault a call that it hit can end.
AFTERWARDS_SECONDS = 5
# The deadline of calls. It is longer than each fault, because a server that
# stands still has to answer later.
DEADLINE_SECONDS = 60
CALM_SECONDS, SHORT_CALM_SECONDS = 3, 0.5
# From this length on, each fault lasts as long as its row in the table says.
LONG_MINUTES = 3
SHORT_SECONDS = 1.5
# The log of the attacked server is emptied when it is larger.
LOG_BYTES = 1 * MIB


class World:
  """The servers, the attackers, and what has been found so far.

  periods: (fault, begin, end) for each fault that has ended
  """

  def __init__(self, options, stack):
    self.options, self._stack = options, stack
    self.stubs = stubs.load(options.build)
    self.binary = options.build / 'server' / 'attnd'
    self.random = random.Random(options.seed)
    self.over = threading.Event()
    self.broken, self.periods = [], []
    self.attacks = collections.Counter()
    self._lock = threading.Lock()
    self._peak_bytes = collections.Counter()
    self.disk = stack.enter_context(faults.Disk())
    self.memory, self.why_no_memory = self._memory()
    self._start_direct()
    self.fleet, self.envoy, self.why_no_envoy = self._start_fleet()
    self.secure, self.why_not_secure = self._start_secure()

  def _memory(self):
    try:
      made = faults.TightMemory()
    except NotRunHere as error:
      return None, str(error)
    self._stack.callback(made.close)
    return made, None

  def _start_direct(self):
    folder = self._stack.enter_context(tempfile.TemporaryDirectory())
    self.shm_socket = pathlib.Path(folder, 'shm.sock')
    # The server's log and its address file are on the small disk.
    tempfile.tempdir = str(self.disk.folder)
    try:
      self.direct = Server(
          self.binary, *flags_of(FLAGS), '--log-level=debug',
          f'--shm-socket={self.shm_socket}', admin='127.0.0.1:0',
          prefix=self.memory.prefix() if self.memory else ())
    finally:
      tempfile.tempdir = None
    self.direct.start()
    self.admin = self.direct.admin
    self.defer(self.direct)
    self.process = Process(self.direct.process.pid)
    self.before = self.process.files(), self.process.threads()

  def _start_fleet(self):
    if not (pathlib.Path(sys.executable).parent / 'envoy').exists():
      return [], None, 'tests/e2e/proxy-requirements.txt is not installed'
    fleet = []
    for _ in range(FLEET):
      fleet.append(Server(self.binary, '--threads=1'))
      fleet[-1].start()
      self.defer(fleet[-1])
    envoy = self._stack.enter_context(Envoy([one.tcp for one in fleet]))
    return fleet, envoy, None

  def _start_secure(self):
    folder = self._stack.enter_context(tempfile.TemporaryDirectory())
    try:
      self.certificates = faults.Certificates(folder)
    except NotRunHere as error:
      return None, str(error)
    secure = Server(self.binary, '--threads=1', *self.certificates.flags)
    secure.start()
    self.defer(secure)
    return secure, None

  @property
  def others(self):
    """Returns all servers but the one that is attacked."""
    return [*self.fleet, *([self.secure] if self.secure else [])]

  def defer(self, server):
    """Ends a server that is still there when the run ends."""

    def end():
      if server.process is not None:
        server.kill()
        server.process = None
      server.__exit__(ValueError, None, None)
    self._stack.callback(end)

  def require(self, holds, what):
    if not holds:
      self.broken.append(what)

  def count(self, what):
    with self._lock:
      self.attacks[what] += 1

  def log_bytes(self):
    """Returns what tells one moment of the log from another."""
    status = os.stat(self.direct.folder / 'log')
    return status.st_size, status.st_mtime_ns

  @contextlib.contextmanager
  def trial(self, name):
    """Returns what an attack needs to connect to the attacked server."""
    made = Trial(self.options, types.SimpleNamespace(name=name), self.stubs,
                 None, self.direct, FLAGS)
    made.random = random.Random(self.random.random())
    try:
      yield made
    finally:
      made.close()

  def start_attacks(self):
    self.victims = faults.Victims(self.options.build, self.direct.tcp,
                                  self.shm_socket)
    self._threads = [threading.Thread(target=self._attack, args=(run,))
                     for run in faults.ATTACKS]
    self._threads.append(threading.Thread(target=self._watch))
    for thread in self._threads:
      thread.start()

  def stop_attacks(self):
    self.over.set()
    for thread in self._threads:
      thread.join()
    self.victims.close()

  def _attack(self, run):
    while not self.over.wait(0.1):
      # During a fault, attackers fail to connect, too.
      with contextlib.suppress(OSError), self.trial(run.__name__) as trial:
        run(self, trial)

  def _watch(self):
    """Looks at the log, and empties it now and then."""
    while not self.over.wait(0.5):
      log = self.direct.folder / 'log'
      if log.stat().st_size > LOG_BYTES:
        self._search_log()
        os.truncate(log, 0)

  def _search_log(self):
    found = SANITIZER.search(self.direct.log())
    self.require(not found, found and found[1][:200])

  def note_memory(self, server):
    """Remembers the most memory that a server has had."""
    name = 'attacked' if server is self.direct else 'another'
    with contextlib.suppress(OSError):
      peak = Process(server.process.pid).peak_bytes()
      self._peak_bytes[name] = max(self._peak_bytes[name], peak)

  def run_fault(self, fault, seconds):
    begin = time.monotonic()
    try:
      result = 'held: ' + fault.run(self, seconds)
    except NotRunHere as error:
      result = f'not run here: {error}'
    except (AssertionError, OSError, subprocess.SubprocessError) as error:
      result = f'BROKEN: {type(error).__name__}: {error}'
      self.broken.append(f'{fault.name}: {error}')
    self.periods.append((fault, begin, time.monotonic()))
    if self.direct.process.poll() is not None:
      raise RuntimeError('the attacked server ended with '
                         f'{self.direct.process.returncode}:\n'
                         f'{self.direct.log()[-3000:]}')
    return result

  def judge_end(self):
    """Checks that the servers are as they were, and ends them."""
    with self.trial('end') as trial:
      seconds = 30 * (3 if self.options.sanitized else 1)
      left = ['nothing was checked']

      def as_before():
        left[:] = settled(trial, self.before)
        return not left
      try:
        poll_until(as_before, seconds, 'a server as before')
      except TimeoutError:
        self.broken += [f'{seconds} s later {each}' for each in left]
    self._search_log()
    for server in (self.direct, *self.others):
      self.note_memory(server)
      server.signal()
      code = server.wait()
      self.require(code == 0, f'a server ends with {code} after SIGTERM')
    return self._judge_memory()

  def _judge_memory(self):
    promised = promised_bytes(FLAGS)
    self.require(self.options.sanitized or
                 self._peak_bytes['attacked'] <= promised * SLACK,
                 'the attacked server holds too much memory')
    return ', '.join(f'{peak / MIB:.0f} MiB {name}'
                     for name, peak in self._peak_bytes.items()) + (
                         f'; {promised / MIB:.0f} MiB are promised')


class Liar(Relay):
  """Stands between callers and the server and plants a fault, to show that it
  is found.

  wrong-bit: one bit of one answer is another one. endless-call: the rest of one
  answer never comes.
  """

  def __init__(self, target, plant):
    super().__init__(target, self._edit)
    self._plant, self._silent = plant, False
    self._left, self._head = 0, b''  # of the current frame

  def _edit(self, data):
    """Follows the frames of one connection, until an answer is large."""
    if self._silent:
      return b''
    at = 0
    while self._plant and at < len(data):
      if self._left:
        step = min(self._left, len(data) - at)
        self._left, at = self._left - step, at + step
        continue
      step = 9 - len(self._head)
      self._head, at = self._head + data[at:at + step], at + step
      if len(self._head) < 9:
        continue
      self._left, kind = number(self._head[:3]), self._head[3]
      self._head = b''
      # Tensors begin within the first 1000 bytes.
      if kind == DATA and self._left > 2000 and len(data) > at + 1000:
        self._silent = self._plant == 'endless-call'
        self._plant, at = None, at + 1000
        rest = b'' if self._silent else bytes([data[at] ^ 1]) + data[at + 1:]
        return data[:at] + rest
    return data


def callers_of(world, liars):
  """Returns (group, address, shared-memory socket, whether each call connects
  anew) for each caller."""
  direct = world.direct
  rows = [(TCP, liar.address, None, False) for liar in liars]
  rows += [(TCP, direct.tcp, None, False), (TCP, direct.tcp, None, False),
           (UNIX, direct.unix, None, False),
           (SHARED, direct.unix, str(world.shm_socket), False),
           (FRESH, direct.tcp, None, True)]
  if world.envoy:
    rows += 3 * [(ENVOY, world.envoy.address, None, False)]
  if world.secure:
    rows += [(TLS, f'tls:{world.secure.tcp}', None, False),
             (FRESH_TLS, f'tls:{world.secure.tcp}', None, True)]
  return rows


@contextlib.contextmanager
def calling(world, options, liars, report):
  """Runs the callers, and puts what they saw into `report`."""
  process = subprocess.Popen(
      [sys.executable, '-B', str(CALLERS)], stdin=subprocess.PIPE,
      stdout=subprocess.PIPE, text=True, env=clean_environment(
          {'GRPC_VERBOSITY': 'NONE'}))
  try:
    process.stdin.write(json.dumps({
        'build': str(options.build), 'seed': options.seed,
        'quiet': world.direct.tcp, 'deadline': options.deadline,
        'authority': world.secure and world.certificates.authority,
        'callers': callers_of(world, liars)}) + '\n')
    process.stdin.flush()
    if process.stdout.readline() != 'connected\n':
      raise RuntimeError('the callers did not connect')
    yield
    process.stdin.write('stop\n')
    process.stdin.flush()
    report.update(json.loads(process.stdout.readline()))
  finally:
    process.stdin.close()
    try:
      process.wait(60)
    except subprocess.TimeoutExpired:
      process.kill()


def judge(failures, periods):
  """Sorts failures into wrong, failed by a fault, and lost."""
  wrong, by_fault, lost = [], [], []
  for one in failures:
    if one['outcome'] == WRONG:
      wrong.append(one)
    elif any(re.match(fault.may_fail.get(one['group'], 'no call may'),
                      f'{one["outcome"]} {one["details"]}') and
             one['begin'] <= end + AFTERWARDS_SECONDS and one['end'] >= begin
             for fault, begin, end in periods):
      by_fault.append(one)
    else:
      lost.append(one)
  return wrong, by_fault, lost


def meanwhile(periods, begin, end):
  """Names the faults during a call."""
  names = [fault.name for fault, since, until in periods
           if since <= end and until >= begin]
  return f' (during: {", ".join(names)})' if names else ''


def print_report(world, report, memory, start):
  """Prints what the callers saw. Returns what is wrong with it."""
  wrong, by_fault, lost = judge(report['failures'], world.periods)
  print(f'\n{"calls by":16}{"sent":>8}{"answered":>10}{"refused":>9}'
        f'{"by fault":>10}{"lost":>6}{"wrong":>7}{"p50 ms":>9}{"p99 ms":>9}'
        f'{"worst ms":>10}')
  reasons, total = collections.Counter(), collections.Counter()
  for name, group in report['groups'].items():
    of = lambda some, name=name: sum(one['group'] == name for one in some)
    counts = {'sent': group['sent'], 'answered': group['answered'],
              'refused': sum(group['refused'].values()),
              'by fault': of(by_fault), 'lost': of(lost), 'wrong': of(wrong)}
    reasons.update(group['refused'])
    total.update(counts)
    took = group['milliseconds'] or [float('nan')]
    slowest = group['slowest']
    print(f'{name:16}{counts["sent"]:8}{counts["answered"]:10}'
          f'{counts["refused"]:9}{counts["by fault"]:10}{counts["lost"]:6}'
          f'{counts["wrong"]:7}{np.percentile(took, 50):9.1f}'
          f'{np.percentile(took, 99):9.1f}{slowest[0] * 1e3:10.0f}'
          + meanwhile(world.periods, *slowest[1:]))
  print(f'{"all":16}' + ''.join(
      f'{total[name]:{width}}' for name, width in (
          ('sent', 8), ('answered', 10), ('refused', 9), ('by fault', 10),
          ('lost', 6), ('wrong', 7))))
  texts = lambda counter: ', '.join(
      f'{count} {name}' for name, count in sorted(counter.items())) or 'none'
  print(f'refused by reason: {texts(reasons)}')
  print('failed by a fault: ' + texts(collections.Counter(
      f'{one["outcome"]} by {one["group"]}' for one in by_fault)))
  print(f'attacks: {texts(world.attacks)}')
  print(f'most resident memory: {memory}')
  for what, some in (('wrong', wrong), ('lost', lost)):
    for one in some[:SHOWN]:
      print(f'{what}: {one["begin"] - start:.1f} to {one["end"] - start:.1f} s, '
            f'{one["group"]}: {one["outcome"]} {one["details"]}' +
            meanwhile(world.periods, one['begin'], one['end']))
  uncounted = total['sent'] - sum(total[name] for name in (
      'answered', 'refused', 'by fault', 'lost', 'wrong'))
  return [text for holds, text in (
      (not wrong, f'{len(wrong)} wrong answers'),
      (not lost, f'{len(lost)} lost calls'),
      (not uncounted, f'{uncounted} calls are not accounted for'),
      (all(group['answered'] for group in report['groups'].values()),
       'a group of callers got no answer')) if not holds]


def run(world, options, report):
  """Makes one fault after another while callers call."""
  seconds = options.minutes * 60
  long = options.minutes >= LONG_MINUTES
  with contextlib.ExitStack() as stack:
    liars = [stack.enter_context(Liar(world.direct.tcp, plant))
             for plant in options.plant]
    stack.enter_context(calling(world, options, liars, report))
    start = time.monotonic()
    world.start_attacks()
    stack.callback(world.stop_attacks)
    chosen = [fault for fault in faults.FAULTS
              if not options.only or fault.name in options.only.split(',')]
    deck, first_round = world.random.sample(chosen, len(chosen)), len(chosen)
    while deck and (len(world.periods) < first_round or
                    time.monotonic() - start < seconds):
      fault = deck.pop()
      time.sleep(CALM_SECONDS if long else SHORT_CALM_SECONDS)
      at = time.monotonic() - start
      result = world.run_fault(
          fault, fault.seconds if long else min(fault.seconds, SHORT_SECONDS))
      if result.startswith('not run here'):
        chosen.remove(fault)
      print(f'{at:6.1f} s  {fault.name:20} {result}', flush=True)
      deck = deck or world.random.sample(chosen, len(chosen))
    time.sleep(CALM_SECONDS if long else SHORT_CALM_SECONDS)
  return start


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--build', type=pathlib.Path, required=True)
  parser.add_argument('--minutes', type=float, default=10)
  parser.add_argument('--seed', type=int, default=1)
  parser.add_argument('--only', metavar='NAME[,NAME...]',
                      help='make only these faults: ' + ', '.join(
                          fault.name for fault in faults.FAULTS))
  parser.add_argument('--deadline', type=float, default=DEADLINE_SECONDS,
                      help='of each call, in seconds')
  parser.add_argument('--plant', choices=['wrong-bit', 'endless-call'],
                      action='append', default=[],
                      help='plant a fault in one answer, to show that it is '
                      'found')
  options = parser.parse_args()
  cache = (options.build / 'CMakeCache.txt').read_text(encoding='utf-8')
  options.sanitized = any(
      line.startswith('ATTND_SANITIZE:') and line.split('=', 1)[1]
      for line in cache.splitlines())
  options.short = options.minutes < LONG_MINUTES
  print(f'seed {options.seed}, {options.minutes:g} minutes', flush=True)
  report = {}
  with contextlib.ExitStack() as stack:
    world = World(options, stack)
    start = run(world, options, report)
    memory = world.judge_end()
    broken = world.broken + print_report(world, report, memory, start)
  for what in broken[:SHOWN]:
    print(f'broken: {what}')
  print(f'{"BROKEN" if broken else "held"} after '
        f'{time.monotonic() - start:.0f} s')
  sys.exit(bool(broken))


if __name__ == '__main__':
  main()
