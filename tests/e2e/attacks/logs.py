"""Attacks on the log: nobody reads it, or clients try to write into it."""

import contextlib
import fcntl
import os
import time

from attacks.harness import attack, computes, health_of
from attacks.readers import exits_in_time
from support.raw_http2 import END_STREAM, header_block

F_SETPIPE_SZ = 1031
# Headers whose values gRPC logs, or could log.
LOGGED = ('grpc-encoding', 'grpc-timeout', 'content-type', 'te',
          'grpc-accept-encoding', 'grpc-previous-rpc-attempts', 'grpc-status',
          'grpc-retry-pushback-ms', 'user-agent', ':scheme', ':method',
          ':authority')


def log_unread(trial, level, bad_calls):
  reading, writing = os.pipe()
  trial.deferred(lambda: os.close(reading))
  fcntl.fcntl(writing, F_SETPIPE_SZ, 4096)
  try:
    server = trial.server = trial.start(f'--log-level={level}', stderr=writing)
  finally:
    os.close(writing)
  block = header_block('GetServerInfo', grpc_encoding='A' * 4000)
  with contextlib.suppress(OSError):
    for _ in range(bad_calls // 12):
      one = trial.connect(server.tcp, seconds=2)
      for _ in range(12):
        one.open(block, END_STREAM)
  client = trial.client(server.tcp)
  answered = 0
  for _ in range(100):
    wrong = computes(client, 5)
    if not trial.require(wrong is None, f'call {answered + 1} is answered '
                         f'{wrong}'):
      break
    answered += 1
  trial.figure(f'{answered} calls right')
  for address in server.addresses:
    status = health_of(address, 3)
    trial.require(status == 'SERVING', f'health says {status}')
  exits_in_time(trial, server)


@attack('log-unread', server=False, sends='calls whose headers gRPC logs, '
        'where stderr is a pipe that nobody reads', promise='calls and health '
        'are answered; SIGTERM drains')
def log_unread_info(trial):
  log_unread(trial, 'info', bad_calls=480)


@attack('log-unread-debug', server=False, sends='calls at --log-level=debug, '
        'where stderr is a pipe that nobody reads', promise='calls and health '
        'are answered; SIGTERM drains')
def log_unread_debug(trial):
  log_unread(trial, 'debug', bad_calls=0)


def logged_since(trial, at, seconds=0.5):
  time.sleep(seconds)
  return (trial.server.folder / 'log').read_bytes()[at:]


def log_size(trial):
  return (trial.server.folder / 'log').stat().st_size


@attack('log-forged', sends='headers with terminal escapes, and with line '
        'feeds that make them look like lines of the log',
        promise='no such line and no escape is in the log')
def log_forged(trial):
  forged = '[2000-01-01 00:00:00.000] [attnd] [info] signal 15: stopping'
  at = log_size(trial)
  for name in LOGGED:
    for value in (f'x\n{forged}', f'x\r\n{forged}\n', '\x1b[2J\x1b[31mred',
                  'x\0y', '\x9b31m', 'x\x7f\x08'):
      one = trial.connect(seconds=2)
      stream = one.open(header_block('GetServerInfo', **{name: value}),
                        END_STREAM)
      one.wait_for(lambda one=one, stream=stream: stream in one.over, 0.1)
      one.close()
  log = logged_since(trial, at)
  lines = log.replace(b'\r', b'\n').split(b'\n')
  forged_lines = sum(l.strip() == forged.encode() for l in lines)
  trial.figure(f'{len(log)} bytes of log')
  trial.require(not forged_lines, f'{forged_lines} forged lines in the log')
  raw = set(log) & (set(range(32)) | {127} | set(range(128, 256))) - {10}
  trial.require(not raw, 'raw bytes in the log: ' +
                ' '.join(f'{b:02x}' for b in sorted(raw)))


@attack('log-flood', sends='calls whose headers gRPC logs, without end',
        promise='the log grows by 64 KiB a second at most')
def log_flood(trial):
  at, start = log_size(trial), time.monotonic()
  block = header_block('GetServerInfo', grpc_encoding='A' * 2000)
  limit, sent = start + trial.pick(8, 2), 0
  one = trial.connect()
  while time.monotonic() < limit:
    if one.gone:
      one = trial.connect()
    for _ in range(50):
      last = one.open(block, END_STREAM)
    sent += 50
    one.wait_for(lambda: last in one.over, 1)
  log = logged_since(trial, at)
  took, lines = time.monotonic() - start, log.count(b'\n')
  trial.figure(f'{sent} calls, {len(log) / took / 1024:.1f} KiB of log a '
               f'second, {lines / took:.0f} lines')
  trial.require(len(log) <= 65536 * took,
                f'{len(log) / took / 1024:.0f} KiB of log a second')
