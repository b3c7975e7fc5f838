"""The faults of ./dev chaos --mixed.

Attacks run at all times, each in a thread of its own, and no caller may notice
them. Faults run one at a time. A fault says which calls may fail because of it,
and with which codes; it makes no other call fail. A fault that is over has to
leave the server as it was, which it checks itself.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import typing

import grpc
import numpy as np

from attacks.connections import HELLO, open_many
from attacks.harness import MIB, SLOTS, NotRunHere, health_of
from attacks.processes import MemoryGroup
from attacks.readers import ask_for_much, begin_streams
from support import certificates
from support.http2 import DATA, END_HEADERS, HEADERS, SETTINGS, frame
from support.raw_http2 import (END_STREAM, PREFACE, connect, header_block,
                               message)
from support.server import Server, clean_environment, poll_until

RECOVERY_SECONDS = 30
VICTIMS = pathlib.Path(__file__).with_name('victims.py')
# The groups of callers.
TCP, UNIX, SHARED, FRESH, ENVOY, TLS, FRESH_TLS = (
    'TCP', 'unix socket', 'shared memory', 'new connections', 'Envoy', 'TLS',
    'new TLS')


# --- attacks that run at all times ---------------------------------------------


def kill_clients(world, trial):
  """Kills clients with SIGKILL in the middle of a call."""
  kind = trial.random.choice(('unary', 'stream', 'shared'))
  pid = world.victims.start(kind)
  if pid is not None:
    time.sleep(trial.random.random() * 0.1)
    with contextlib.suppress(ProcessLookupError):
      os.kill(pid, signal.SIGKILL)
    world.count(f'{kind} client killed')


def half_close(world, trial):
  """Closes the sending half of connections before, in and after a message."""
  begin = PREFACE + frame(SETTINGS) + frame(
      HEADERS, header_block('SelfAttention'), END_HEADERS, 1)
  client = trial.client()
  body = message(client.self_request(
      np.ones((16, 8), np.float32)).SerializeToString())
  for data in (PREFACE, begin, begin + frame(DATA, body[:20], 0, 1),
               begin + frame(DATA, body, END_STREAM, 1)):
    for address in world.direct.addresses:
      peer = connect(address, 1)
      trial.deferred(peer.close)
      peer.sendall(data)
      peer.shutdown(socket.SHUT_WR)
      world.count('half-close')
  time.sleep(0.3)


def stall(world, trial):
  """Asks for large answers and reads none of them; begins streams and sends
  nothing."""
  one = trial.connect(window=0, seconds=2)
  ask_for_much(trial, one, 3)
  begin_streams(trial, world.direct.tcp, 2)
  world.count('stalled reader')
  time.sleep(trial.random.random() * 2)


def drip(world, trial):
  """Sends the preface and the headers a byte at a time."""
  data = PREFACE + frame(SETTINGS) + frame(
      HEADERS, header_block('Attention'), 0, 1)
  peers = [connect(address, 1) for address in world.direct.addresses]
  for peer in peers:
    trial.deferred(peer.close)
  for byte in data[:trial.random.randrange(20, len(data))]:
    for peer in peers:
      peer.sendall(bytes([byte]))
    if world.over.wait(0.02):
      break
  world.count('slow header')


def send_garbage(world, trial):
  """Sends bytes that are no HTTP/2 to every socket of the server."""
  for data in (HELLO, b'GET / HTTP/1.1\r\nHost: x\r\n\r\n',
               PREFACE + trial.random.randbytes(200),
               trial.random.randbytes(trial.random.randint(1, 3000))):
    for address in (*world.direct.addresses, world.direct.admin):
      open_many(trial, address, 2, data)
      world.count('garbage')
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
      peer.settimeout(1)
      peer.connect(str(world.shm_socket))
      peer.send(data)
  time.sleep(0.2)


def crowd(world, trial):
  """Makes more calls at once than there are slots, and cancels them."""
  client = trial.client()
  # A message of 128 KiB that takes a second to compute.
  request = client.self_request(np.ones((1, 1 << 15, 1), np.float32))
  calls = [client.stub.SelfAttention.future(request, timeout=60)
           for _ in range(2 * SLOTS)]
  time.sleep(0.1 + 0.4 * trial.random.random())
  for call in calls:
    call.cancel()
  world.count('crowd')
  world.over.wait(2 * trial.random.random())


ATTACKS = (kill_clients, half_close, stall, drip, send_garbage, crowd)


class Victims:
  """The process that forks clients to be killed."""

  def __init__(self, build, address, shm_socket):
    self._process = subprocess.Popen(
        [sys.executable, '-B', str(VICTIMS), str(build), address,
         str(shm_socket)], env=clean_environment(), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)

  def start(self, kind):
    """Returns the process id of a client in the middle of a call, or None if
    the server did not let it come that far."""
    self._process.stdin.write(f'{kind}\n'.encode())
    if not select.select([self._process.stdout], [], [], 10)[0]:
      return None
    return int(self._process.stdout.readline() or 0) or None

  def close(self):
    self._process.stdin.close()
    self._process.wait(60)


# --- faults, of which one runs at a time --------------------------------------


@dataclasses.dataclass
class Fault:
  """A row of the table."""
  name: str
  run: typing.Callable  # gets the world, and for how many seconds it lasts
  seconds: float  # in a long run
  # Group of callers: a pattern for the code and the details of calls that may
  # fail because of it.
  may_fail: dict


FAULTS = []


def fault(name, *, seconds=5, may_fail=None):
  """Adds a function to the table of faults."""

  def add(run):
    FAULTS.append(Fault(name, run, seconds, may_fail or {}))
    return run
  return add


@fault('descriptors-run-out', may_fail={FRESH: 'UNAVAILABLE'})
def descriptors_run_out(world, seconds):
  """Nobody can connect. Whoever is connected is served."""
  pid = world.direct.process.pid
  before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
  files = len(os.listdir(f'/proc/{pid}/fd'))
  sockets = []
  try:
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (files + 4, before[1]))
    with world.trial('descriptors') as trial:
      for address in world.direct.addresses:
        sockets += open_many(trial, address, 60)
      world.over.wait(seconds)
  finally:
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
  for address in world.direct.addresses:
    poll_until(lambda a=address: health_of(a, 5) == 'SERVING',
               RECOVERY_SECONDS, f'health on {address} afterwards')
  return f'{len(sockets)} connections for 4 descriptors'


@fault('disk-full')
def disk_full(world, seconds):
  """The log cannot be written, nor the address file of another server."""
  if not world.disk.limited:
    raise NotRunHere(world.disk.why_not)
  filler = world.disk.folder / 'filler'
  try:
    with open(filler, 'wb', buffering=0) as file, \
        contextlib.suppress(OSError):
      while True:
        file.write(bytes(4096))
    process = subprocess.run(
        [str(world.binary), '--listen=127.0.0.1:0', '--admin-listen=',
         f'--address-file={world.disk.folder}/addresses-of-another'],
        env=clean_environment(), capture_output=True, text=True,
        timeout=RECOVERY_SECONDS, check=False)
    world.require(process.returncode == 1 and '--address-file' in
                  process.stderr, 'a server that cannot write its '
                  f'--address-file ends with {process.returncode}: '
                  f'{process.stderr[-300:]}')
    world.over.wait(seconds)
  finally:
    filler.unlink()
  written = world.log_bytes()
  poll_until(lambda: world.log_bytes() != written, RECOVERY_SECONDS,
             'a line of the log after the disk has room again')
  return 'the log goes on afterwards'


@fault('stopped', seconds=10)
def stopped(world, seconds):
  """SIGSTOP makes the whole process stand still. Its calls are answered
  afterwards."""
  world.direct.signal(signal.SIGSTOP)
  try:
    world.over.wait(seconds)
  finally:
    world.direct.signal(signal.SIGCONT)
  return f'{seconds:g} s'


@fault('certificates-swapped')
def certificates_swapped(world, seconds):
  """The certificate and its key are replaced again and again, and once by a
  file that is cut off."""
  if world.secure is None:
    raise NotRunHere(world.why_not_secure)
  swaps, until = 0, time.monotonic() + seconds
  while time.monotonic() < until:
    world.certificates.swap()
    swaps += 1
    world.over.wait(0.3)
  world.certificates.cut_off()
  world.over.wait(1)
  name = world.certificates.swap()
  poll_until(lambda: world.certificates.served_name(world.secure.tcp) == name,
             RECOVERY_SECONDS, f'the certificate {name}')
  return f'{swaps + 1} swaps; the last certificate is served'


@fault('memory-high')
def memory_high(world, seconds):
  """The kernel makes the server wait whenever it allocates."""
  if world.memory is None:
    raise NotRunHere(world.why_no_memory)
  with world.trial('memory') as trial:
    client = trial.client(world.direct.unix)
    large = np.ones((1, 1 << 20, 8), np.float32)
    hits = world.memory.hits()
    world.memory.squeeze()
    try:
      call = client.stub.Attention.future(client.request(
          large, large[:, :1], large[:, :1]), timeout=120)
      world.over.wait(seconds)
    finally:
      world.memory.release()
    try:
      right = np.array_equal(client.array(call.result().output), large)
      world.require(right, 'a wrong answer to the call of 32 MiB')
    except grpc.RpcError as error:
      world.require(error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f'the call of 32 MiB ends with {error.code()}')
  hits = world.memory.hits() - hits
  world.require(hits > 0, 'the server did not reach the limit')
  return f'reached {hits} times'


@fault('killed-behind-envoy', seconds=2,
       may_fail={ENVOY: 'UNAVAILABLE|INTERNAL.*RST_STREAM'})
def killed_behind_envoy(world, seconds):
  """Envoy repeats calls of the killed server, unless their answers had
  begun."""
  if world.envoy is None:
    raise NotRunHere(world.why_no_envoy)
  at = world.random.randrange(len(world.fleet))
  old = world.fleet[at]
  world.note_memory(old)
  address = old.tcp
  old.kill()
  old.forget()
  world.over.wait(seconds)
  new = Server(world.binary, '--threads=1', listen=address)
  new.start()
  world.fleet[at] = new
  world.defer(old)
  before = world.envoy.host_stats(address)['rq_success']
  poll_until(lambda: world.envoy.host_stats(address)['rq_success'] > before,
             RECOVERY_SECONDS, 'an answer of the new server')
  return 'another server in its place answers calls'


@fault('clock-step')
def clock_step(*_):
  raise NotRunHere('only the clock of the whole machine can be set, and '
                   'libfaketime does not reach the waits of Abseil, which '
                   'call the kernel directly')


class Certificates:
  """Two certificates and their keys, one of which is where the server reads
  them. Raises NotRunHere if the machine cannot make certificates."""

  def __init__(self, folder):
    if shutil.which('openssl') is None:
      raise NotRunHere('openssl is not installed')
    self._folder = pathlib.Path(folder)
    self._authority = certificates.Authority(self._folder, 'authority')
    self.authority = str(self._authority.cert)
    self._pairs = [self._authority.issue(name) for name in ('first', 'second')]
    self._cert, self._key = self._folder / 'tls.crt', self._folder / 'tls.key'
    self.swap()

  @property
  def flags(self):
    return [f'--tls-cert={self._cert}', f'--tls-key={self._key}']

  def swap(self):
    """Puts the other certificate in place. Returns its name."""
    self._pairs.reverse()
    pair = self._pairs[0]
    for source, target in ((pair.key, self._key), (pair.cert, self._cert)):
      self._replace(target, source.read_bytes())
    return pair.cert.stem

  def cut_off(self):
    self._replace(self._cert, self._cert.read_bytes()[:200])

  def _replace(self, target, content):
    fresh = self._folder / 'fresh'
    fresh.write_bytes(content)
    fresh.replace(target)

  def served_name(self, address):
    return certificates.served_name(address, self._authority)


class Disk:
  """A context manager: a folder on a small file system, if the machine allows
  to mount one, and a plain folder otherwise."""

  SIZE_BYTES = 4 * MIB

  def __enter__(self):
    self.folder = pathlib.Path(tempfile.mkdtemp(prefix='attnd-disk-'))
    done = subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', f'size={self.SIZE_BYTES}', 'none',
         str(self.folder)], capture_output=True, text=True, check=False)
    self.limited = done.returncode == 0
    self.why_not = f'cannot mount a small disk: {done.stderr.strip()}'
    return self

  def __exit__(self, *_):
    if self.limited:
      subprocess.run(['umount', '-l', str(self.folder)], check=False)
    shutil.rmtree(self.folder, ignore_errors=True)


class TightMemory(MemoryGroup):
  """A cgroup with a limit that makes a process wait, and does not kill it.

  Version 1 of cgroups has no such limit. With memory.oom_control, a process
  waits only outside of system calls, while reading from a socket fails (EFAULT).
  """

  LIMIT_BYTES = 8192 * MIB

  def __init__(self):
    super().__init__(self.LIMIT_BYTES)
    if not (self.folder / 'memory.high').exists():
      self.close()
      raise NotRunHere('version 1 of cgroups has no memory.high')

  def squeeze(self):
    """Leaves 1 MiB above what the process has now."""
    usage = int((self.folder / 'memory.current').read_text())
    (self.folder / 'memory.high').write_text(str(usage + MIB))

  def release(self):
    (self.folder / 'memory.high').write_text('max')

  def hits(self):
    """Returns how often the limit was reached."""
    return int(re.search(r'^high (\d+)', (self.folder / 'memory.events')
                         .read_text(), re.MULTILINE)[1])
