"""Attacks on the listeners, with file descriptors, connections, and peers that
do not speak gRPC."""

import contextlib
import resource
import time

from attacks.harness import attack, computes, health_of, health_on
from attacks.readers import ENDED_SECONDS, within
from support.http2 import END_HEADERS, HEADERS, SETTINGS, frame
from support.raw_http2 import END_STREAM, PREFACE, connect, header_block
from support.server import open_channel


def open_many(trial, address, count, data=PREFACE):
  """Opens plain connections that send `data` and nothing else."""
  made = []
  for _ in range(count):
    with contextlib.suppress(OSError):
      made.append(connect(address, 1))
      made[-1].sendall(data)
  trial.deferred(lambda: [s.close() for s in made])
  return made


def still_open(sockets):
  """Returns those of the sockets that the server has not closed."""
  left = []
  for one in sockets:
    one.setblocking(False)
    try:
      while one.recv(65536):
        pass
    except BlockingIOError:
      left.append(one)
    except OSError:
      pass
  return left


def heard_again(trial, seconds=5):
  """Requires that every listener answers a new connection within `seconds`."""
  start = time.monotonic()
  deaf = list(trial.server.addresses)
  while deaf and time.monotonic() - start < seconds:
    deaf = [a for a in deaf if health_of(a, 1) != 'SERVING']
    time.sleep(0.1)
  trial.figure(f'every listener answers after {time.monotonic() - start:.1f} s'
               if not deaf else f'deaf: {len(deaf)} listeners')
  blind = [a for a in trial.server.addresses if a not in deaf]
  trial.require(not deaf, f'{deaf} do not answer {seconds} s after the last '
                'connection was closed' + (
                    ', while health on the other says SERVING'
                    if deaf and blind else ''))


@attack('descriptors-run-out', sends='more connections than `ulimit -n` (128) '
        'lets the server have, closed again', promise='every listener answers '
        'within 5 s', prefix=('prlimit', '--nofile=128:128'), fresh=False,
        tolerance=1)
def descriptors_run_out(trial):
  for listener in trial.server.addresses:
    sockets = open_many(trial, listener, 300)
    time.sleep(0.5)
    for one in sockets:
      one.close()
  heard_again(trial)


@attack('descriptors-run-out-late', sends='more connections than the server '
        'can have, after `ulimit -n` is lowered while it runs',
        promise='health says NOT_SERVING on every listener meanwhile; every '
        'listener answers within 5 s', fresh=False, tolerance=1)
def descriptors_run_out_late(trial):
  kept = [open_channel(listener) for listener in trial.server.addresses]
  for channel in kept:
    trial.deferred(channel.close)
    trial.require(health_on(channel, 5) == 'SERVING', 'no health beforehand')
  pid = trial.server.process.pid
  before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
  resource.prlimit(pid, resource.RLIMIT_NOFILE,
                   (trial.process.files() + 24, before[1]))
  for listener in trial.server.addresses:
    sockets = open_many(trial, listener, 60)
    told = within(10, lambda: all(health_on(channel, 5) == 'NOT_SERVING'
                                  for channel in kept))
    trial.require(told is not None, f'while {listener} accepts nobody, health '
                  f'says {[health_on(channel, 5) for channel in kept]}')
    for one in sockets:
      one.close()
  heard_again(trial)
  resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@attack('connections-over-limit', sends='60 connections where '
        '--max-connections is 20', promise='those above it are closed at '
        'once; the first go on; a new client takes the place of one that says '
        'nothing; there is room again when they leave',
        settings={'max-connections': 20}, fresh=False, tolerance=0)
def connections_over_limit(trial):
  client = trial.client()
  trial.require(computes(client) is None, 'the first client is not served')
  sockets = open_many(trial, trial.server.tcp, 60, PREFACE + frame(SETTINGS))
  time.sleep(1)
  left = still_open(sockets)
  trial.figure(f'{len(left)} of 60 connections stay open')
  trial.require(len(left) <= 20, f'{len(left)} connections are open')
  trial.require(len(left) >= 8, f'only {len(left)} connections were let in')
  trial.require(computes(client) is None, 'the first client is served no more')
  # The connections count as idle after a second.
  new = within(5, lambda: all(health_of(a, 1) == 'SERVING'
                              for a in trial.server.addresses))
  trial.require(new is not None, 'no new client takes the place of an idle one')
  for one in sockets:
    one.close()
  heard_again(trial)


@attack('connections-silent', sends='connections that say nothing, that say '
        'half of the preface, and that do not end a header',
        promise='all of them are ended after --stream-idle-timeout')
def connections_silent(trial):
  # The second block belongs to a call that has ended.
  block = header_block('GetServerInfo')
  header = (PREFACE + frame(SETTINGS) +
            frame(HEADERS, block, END_HEADERS | END_STREAM, 1) +
            frame(HEADERS, block, 0, 1))
  kinds = {'say nothing': b'', 'say half of the preface': PREFACE[:12],
           'do not end a header': header}
  opened = {kind: [one for listener in trial.server.addresses
                   for one in open_many(trial, listener, 5, data)]
            for kind, data in kinds.items()}

  def left():
    return {kind: len(some) for kind, sockets in opened.items()
            if (some := still_open(sockets))}
  took = within(ENDED_SECONDS, lambda: not left())
  if trial.require(took is not None, f'after {ENDED_SECONDS:.1f} s connections '
                   f'are open that {left()}'):
    trial.figure(f'all are ended after {took:.1f} s')


@attack('connections-idle', sends='1000 connections that send nothing, then '
        '1000 that send the preface, on every listener',
        promise='others are served; all descriptors come back', short=False)
def connections_idle(trial):
  for listener in trial.server.addresses:
    for data in (b'', PREFACE):
      sockets = open_many(trial, listener, 1000, data)
      time.sleep(1)
      trial.figure(f'{len(still_open(sockets))} open')
      for one in sockets:
        one.close()


HELLO = (b'\x16\x03\x01\x00\xf4\x01\x00\x00\xf0\x03\x03' + bytes(range(32)) +
         b'\x20' + bytes(range(32)) + b'\x00\x04\x13\x01\x13\x02\x01\x00' +
         bytes(163))


@attack('strangers', sends='garbage, a TLS hello, HTTP/1, half a preface and '
        'the preface byte by byte', promise='others are served; all '
        'descriptors come back')
def strangers(trial):
  number = trial.pick(200, 50)
  for listener in trial.server.addresses:
    for data in (HELLO, b'GET / HTTP/1.1\r\nHost: x\r\n\r\n', PREFACE[:12],
                 b'\0' * 100):
      for one in open_many(trial, listener, number // 4, data):
        one.close()
    for _ in range(number):
      for one in open_many(trial, listener, 1, trial.random.randbytes(
          trial.random.randint(1, 3000))):
        one.close()
      for one in open_many(trial, listener, 1, PREFACE +
                           trial.random.randbytes(200)):
        one.close()
  slow = connect(trial.server.tcp, 5)
  for at in range(len(PREFACE)):
    with contextlib.suppress(OSError):
      slow.sendall(PREFACE[at:at + 1])
    time.sleep(0.02)
  slow.close()
