"""Attacks on the process: the files that it writes, signals, and its end."""

import contextlib
import os
import pathlib
import re
import signal
import stat
import subprocess
import tempfile
import time

import grpc
import numpy as np

from attacks.harness import (MIB, SANITIZER, NotRunHere, Process, attack,
                             computes, health_of)
from attacks.memory import opened_and_reset, storm
from attacks.messages import SMALL_FIELDS, send_for
from attacks.readers import within
from support import work
from support.http2 import END_HEADERS, HEADERS, frame
from support.raw_http2 import header_block, message
from support.server import POLL_SECONDS, clean_environment, poll_until


def launch(trial, folder, *flags):
  """Launches attnd on a socket in the folder, without waiting. The server is
  killed at the end."""
  with open(folder / 'log', 'ab') as log:
    process = subprocess.Popen(
        [str(trial.binary), f'--listen=unix:{folder}/attnd.sock',
         '--admin-listen=', *flags],
        env=clean_environment(), stderr=log, stdin=subprocess.DEVNULL)

  def end():
    process.kill()
    process.wait()
  trial.deferred(end)
  return process


@attack('address-file', server=False, sends='--address-file of a link, a FIFO, '
        'a device and a folder', promise='an error; all of these stay as '
        'they were')
def address_file(trial):
  with tempfile.TemporaryDirectory(prefix='attnd-') as name:
    folder = pathlib.Path(name)
    (folder / 'kept').write_text('kept')
    (folder / 'link').symlink_to(folder / 'kept')
    (folder / 'dangling').symlink_to(folder / 'nothing')
    os.mkfifo(folder / 'fifo')
    (folder / 'folder').mkdir()
    targets = ['link', 'dangling', 'fifo', 'folder']
    try:
      # This is a second null device, because everybody uses the first one.
      os.mknod(folder / 'device', stat.S_IFCHR | 0o666, os.makedev(1, 3))
      targets.append('device')
    except PermissionError:
      trial.figure('device not tried here: needs root')
    for target in targets:
      path = folder / target
      before = path.lstat()
      process = launch(trial, folder, f'--address-file={path}')
      within(20, lambda process=process: process.poll() is not None or
             (folder / 'attnd.sock').exists())
      time.sleep(0.3 if process.poll() is None else 0)
      if process.poll() is None:
        process.terminate()
        process.wait(60)
        trial.require(False, f'a {target} is taken as an address file')
      else:
        trial.require(process.returncode == 1,
                      f'{target}: exit code {process.returncode}')
      try:
        after = path.lstat()
        same = (after.st_ino, after.st_mode, after.st_rdev) == (
            before.st_ino, before.st_mode, before.st_rdev)
      except FileNotFoundError:
        same = False
      trial.require(same, f'the {target} is gone or another')
    trial.require((folder / 'kept').read_text() == 'kept',
                  'the file behind a link was written')
    trial.require(not (folder / 'nothing').exists(),
                  'a file was made through a link')
    trial.figure(f'{len(targets)} kinds')


@attack('signals', server=False, sends='SIGHUP, SIGUSR1, SIGUSR2, SIGQUIT, '
        'SIGALRM and SIGPIPE with a call in flight', promise='the call is '
        'answered; the server goes on, or ends with 0')
def signals(trial):
  server = trial.start(settings={'drain-timeout': 60})
  rows = work.rows_for(trial.client(server.unix), seconds=0.7)
  for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2,
                 signal.SIGQUIT, signal.SIGALRM, signal.SIGPIPE):
    client = trial.client(server.unix)
    call = client.stub.SelfAttention.future(
        client.self_request(np.ones((1, rows, 1), np.float32)), timeout=60)
    time.sleep(0.2)
    server.signal(number)
    try:
      right = np.allclose(client.array(call.result().output), 1)
      trial.require(right, f'{number.name}: a wrong answer')
    except grpc.RpcError as error:
      trial.require(False, f'{number.name}: the call is lost, '
                    f'{error.code().name}')
    within(0.3, lambda: server.process.poll() is not None)
    if server.process.poll() is not None:
      trial.require(server.process.returncode == 0, f'{number.name}: the '
                    f'server ended with {server.process.returncode}')
      server.start()
  trial.figure('six signals')
  trial.require(computes(trial.client(server.tcp)) is None,
                'no right answer afterwards')


@attack('config-fifo', server=False, sends='SIGTERM while --config is a FIFO '
        'that nobody writes to', promise='the server ends')
def config_fifo(trial):
  with tempfile.TemporaryDirectory(prefix='attnd-') as name:
    folder = pathlib.Path(name)
    os.mkfifo(folder / 'fifo')
    process = launch(trial, folder, f'--config={folder}/fifo')
    within(1, lambda: process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    took = within(5, lambda: process.poll() is not None)
    trial.require(took is not None, 'SIGTERM is not obeyed after 5 s')
    trial.figure(f'exit code {process.poll()}')


@attack('killed-and-restarted', server=False, sends='kill -9 with calls in '
        'flight, and a new server on the same socket', promise='it serves at '
        'once')
def killed_and_restarted(trial):
  server = trial.start()
  slowest = 0
  for _ in range(trial.pick(10, 3)):
    client = trial.client(server.unix)
    calls = [client.stub.SelfAttention.future(work.endless_request(client))
             for _ in range(2)]
    time.sleep(0.1)
    server.kill()
    trial.require(all(c.code() == grpc.StatusCode.UNAVAILABLE for c in calls),
                  f'calls of a killed server end as {calls[0].code()}')
    start = time.monotonic()
    server.start()
    for address in server.addresses:
      status = health_of(address, 5)
      trial.require(status == 'SERVING', f'health says {status}')
    slowest = max(slowest, time.monotonic() - start)
  trial.figure(f'serves after {slowest:.2f} s at most')
  trial.require(computes(trial.client(server.unix)) is None,
                'no right answer afterwards')


@attack('budget-boundless', server=False, sends='large messages where '
        '--memory-budget-bytes is 2^63 - 1', promise='right answers')
def budget_boundless(trial):
  server = trial.start(settings={'memory-budget-bytes': 2**63 - 1})
  client = trial.client(server.tcp)
  large = np.ones((1, 1 << 20, 8), np.float32)
  for _ in range(4):
    answer = client.attention(large, large[:, :1], large[:, :1], timeout=60)
    trial.require(np.array_equal(client.array(answer.output), large),
                  'a wrong answer')
  found = SANITIZER.search(server.log())
  trial.require(not found, found and found[1])


# --- a limit of memory that the kernel enforces -------------------------------

CGROUP = pathlib.Path('/sys/fs/cgroup')
LIMIT = 1024 * MIB


class MemoryGroup:
  """A context manager: a cgroup of either version with a memory limit."""

  def __init__(self, limit_bytes):
    name = f'attnd-chaos-{os.getpid()}'
    if (CGROUP / 'memory').is_dir():
      self.folder = CGROUP / 'memory' / name
      limits = {'memory.limit_in_bytes': limit_bytes,
                'memory.memsw.limit_in_bytes': limit_bytes}
      self._peak, self._kills = ('memory.max_usage_in_bytes',
                                 'memory.oom_control')
    elif (CGROUP / 'cgroup.controllers').exists():
      self.folder = CGROUP / name
      limits = {'memory.max': limit_bytes, 'memory.swap.max': 0}
      self._peak, self._kills = 'memory.peak', 'memory.events'
    else:
      raise NotRunHere('no cgroups are mounted')
    try:
      self.folder.mkdir()
    except OSError as error:
      raise NotRunHere(f'cannot make a cgroup: {error}') from None
    try:
      for file, value in limits.items():
        path = self.folder / file
        if path.exists():
          path.write_text(str(value))
        elif file in ('memory.max', 'memory.limit_in_bytes'):
          raise OSError(f'no {path}')
    except OSError as error:
      self.folder.rmdir()
      raise NotRunHere(f'cannot limit a cgroup: {error}') from None

  def prefix(self):
    """Returns the words that start a command in the cgroup."""
    return ('sh', '-c', f'echo $$ > {self.folder}/cgroup.procs && exec "$@"',
            'sh')

  def peak_bytes(self):
    path = self.folder / self._peak
    return int(path.read_text()) if path.exists() else 0

  def kills(self):
    for line in (self.folder / self._kills).read_text().splitlines():
      if line.startswith('oom_kill '):
        return int(line.split()[1])
    return 0

  def close(self):
    with contextlib.suppress(TimeoutError, OSError):
      limit = time.monotonic() + 10
      while (self.folder / 'cgroup.procs').read_text().strip():
        if time.monotonic() > limit:
          break
        time.sleep(POLL_SECONDS)
      self.folder.rmdir()


@attack('memory-cgroup', server=False, sends='resets, calls of headers alone, '
        'half-sent messages and messages of tiny fields, one after another',
        promise='the kernel, which gives it 1 GiB, does not kill it; '
        'others are served', seconds=180)
def memory_cgroup(trial):
  if trial.sanitized:
    raise NotRunHere('a sanitizer holds more than the server may')
  group = MemoryGroup(LIMIT)
  trial.deferred(group.close)  # after the server's end
  server = trial.server = trial.start(
      settings={'memory-budget-bytes': None}, prefix=group.prefix())
  process = Process(server.process.pid)
  found = poll_until(lambda: re.search(r'memory budget (\d+)', server.log()),
                     60, 'the line of the log that tells the budget')
  budget = int(found[1])
  trial.figure(f'budget {budget / MIB:.0f} MiB')
  trial.require(budget < LIMIT, 'the budget is above the limit')
  parts = {
      'resets': lambda: storm(trial, 4, trial.pick(200_000, 120_000),
                              opened_and_reset('Attention'),
                              trial.pick(20, 10)),
      'headers alone': lambda: many_headers(trial, trial.pick(100, 60)),
      'half-sent messages': lambda: half_sent_large(trial, 40),
      'tiny fields': lambda: send_for(
          trial, SMALL_FIELDS['an unpacked shape'](trial.pick(96, 32) * MIB),
          4, trial.pick(6, 3)),
  }
  for name, send in parts.items():
    with contextlib.suppress(OSError):
      send()
    if not trial.require(server.process.poll() is None, f'{name}: the server '
                         f'ended with {server.process.poll()}'):
      break
    trial.figure(f'{name}: RSS peak {process.peak_bytes() / MIB:.0f} MiB')
    process.forget_peak()
  trial.figure(f'cgroup peak {group.peak_bytes() / MIB:.0f} MiB')
  trial.require(not group.kills(), f'the kernel killed {group.kills()} times')
  if server.process.poll() is None:
    within(15, lambda: computes(trial.client(server.unix)) is None)
    for address in server.addresses:
      wrong = computes(trial.client(address))
      trial.require(wrong is None, f'a small call is answered {wrong}')
  found = SANITIZER.search(server.log())
  trial.require(not found, found and found[1])


def many_headers(trial, count):
  block = header_block('Attention')
  connections = [trial.connect(seconds=5) for _ in range(count)]
  for one in connections:
    one.send(b''.join(frame(HEADERS, block, END_HEADERS, s)
                      for s in one.new_streams(1000)))
  time.sleep(3)
  for one in connections:
    one.close()


def half_sent_large(trial, count):
  block, body = header_block('Attention'), message(bytes(8 * MIB), 100 * MIB)
  connections = [trial.connect(seconds=5) for _ in range(count)]
  streams = [one.open(block) for one in connections]
  limit = time.monotonic() + trial.pick(15, 8)
  for one, stream in zip(connections, streams):
    if time.monotonic() < limit:
      one.send_data(stream, body, seconds=2)
  for one in connections:
    one.close()
