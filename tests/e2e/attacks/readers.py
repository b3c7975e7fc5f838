"""Attacks that make the server wait, with answers that nobody reads and
messages that do not end."""

import time

import numpy as np

from attacks.harness import (DRAIN_SECONDS, IDLE_SECONDS, SLOTS, attack,
                             budget_free, free_slots)
from support.http2 import DATA, END_HEADERS, HEADERS, WINDOW_UPDATE, frame
from support.raw_http2 import header_block, message

DEADLINE_EXCEEDED = 4
# The server notices a silent client up to a quarter of --stream-idle-timeout
# late. The rest of this time is for slow machines.
ENDED_SECONDS = IDLE_SECONDS * 1.25 + 6


def within(seconds, condition, meanwhile=lambda: None):
  """Returns the seconds until the condition held, or None if it did not
  hold."""
  start = time.monotonic()
  while time.monotonic() - start < seconds:
    meanwhile()
    if condition():
      return time.monotonic() - start
    time.sleep(0.1)
  return None


def back(trial, what, condition, meanwhile=lambda: None):
  """Requires that the server gets something back while the attacker is still
  connected."""
  seconds = ENDED_SECONDS * (3 if trial.sanitized else 1)
  took = within(seconds, condition, meanwhile)
  if trial.require(took is not None, f'{what} not back after {seconds:.0f} s'):
    trial.figure(f'{what} back after {took:.1f} s')


def hold_by_benchmarks(trial, address, slots):
  """Starts a benchmark for each slot, and reads none of their answers.

  Returns the connection and the streams.
  """
  one = trial.connect(address, window=0)
  block = header_block('Benchmark')
  body = trial.pb.BenchmarkRequest(
      num_vectors=1, repetitions=1).SerializeToString()
  begun, limit = [], time.monotonic() + 10
  while time.monotonic() < limit and not one.gone:
    begun = [s for s in begun if s not in one.over]
    if len(begun) >= slots:
      break
    begun.append(one.call(block, body))
    # If another benchmark runs, this one is refused.
    one.wait_for(lambda: begun[-1] in one.over, 0.2)
  return one, [s for s in begun if s not in one.over]


@attack('benchmarks-unread', sends='a Benchmark for each slot, whose answers '
        'it does not read', promise='the calls are ended after '
        '--stream-idle-timeout', settings={'max-in-flight': 8})
def benchmarks_unread(trial):
  one, held = hold_by_benchmarks(trial, trial.server.tcp, 8)
  trial.figure(f'{len(held)} answers unread')
  seconds = ENDED_SECONDS * (3 if trial.sanitized else 1)
  one.wait_for(lambda: one.over.issuperset(held), seconds)
  left = len(set(held) - one.over)
  trial.require(not left, f'{left} calls are not ended after {seconds:.0f} s')


@attack('benchmarks-unread-long', sends='a Benchmark for each slot, whose '
        'answers it does not read, with --stream-idle-timeout=60',
        promise='all slots come back at once',
        settings={'max-in-flight': 8, 'stream-idle-timeout': 60})
def benchmarks_unread_long(trial):
  hold_by_benchmarks(trial, trial.server.tcp, 8)
  client = trial.client(trial.server.unix)
  back(trial, 'the slots', lambda: free_slots(client, 8) == 8)


def ask_for_much(trial, connection, count):
  """Makes calls of 18 KB that are answered with 14 MB. Returns their
  streams."""
  client = trial.client()
  request = client.request(np.ones((3500, 1), np.float32),
                           np.ones((1, 1), np.float32),
                           np.ones((1, 1024), np.float32)).SerializeToString()
  block, streams = header_block('Attention'), []
  for _ in range(count):
    streams.append(connection.open(block))
    connection.send_data(streams[-1], message(request), end=True, seconds=5)
  return streams


@attack('answers-unread', sends='18 calls for answers of 14 MB, which it does '
        'not read', promise='the budget comes back before it disconnects')
def answers_unread(trial):
  one = trial.connect(window=0)
  streams = ask_for_much(trial, one, 18)
  time.sleep(1)
  trial.figure(f'{sum(s in one.begun for s in streams)} answers begun')
  client = trial.client(trial.server.unix)
  back(trial, 'the budget', lambda: budget_free(
      client, trial.settings['memory-budget-bytes']))


@attack('answers-dripped', sends='18 calls for answers of 14 MB, of which it '
        'reads a byte from time to time',
        promise='the budget comes back before it disconnects')
def answers_dripped(trial):
  one = trial.connect(window=0, renews=False)
  streams = ask_for_much(trial, one, 18)

  def take_a_byte():
    one.send(b''.join(frame(WINDOW_UPDATE, (1).to_bytes(4, 'big'), stream=s)
                      for s in streams if s not in one.over))
  client = trial.client(trial.server.unix)
  back(trial, 'the budget', lambda: budget_free(
      client, trial.settings['memory-budget-bytes']), take_a_byte)


def begin_streams(trial, address, count):
  """Begins streams with one query each. Returns the connection, the streams,
  and a function that sends a little more."""
  pb = trial.pb
  one = trial.connect(address)
  tensor = pb.Tensor(dtype=pb.DATA_TYPE_F32, shape=[16, 64])
  header = pb.AttentionStreamRequest(header=pb.AttentionRequest(
      query=tensor, key=tensor, value=tensor)).SerializeToString()
  block, streams = header_block('AttentionStream'), one.new_streams(count)
  for stream in streams:
    one.send(frame(HEADERS, block, END_HEADERS, stream) +
             frame(DATA, message(header), 0, stream))
  at = [0]

  def drip():
    chunk = pb.AttentionStreamRequest(chunk=pb.TensorChunk(
        role=pb.TENSOR_ROLE_QUERY, offset_bytes=at[0],
        data=b'\0')).SerializeToString()
    at[0] += 1
    one.send(b''.join(frame(DATA, message(chunk), 0, s) for s in streams
                      if s not in one.over))
  return one, streams, drip


@attack('streams-dripped', sends='an AttentionStream for each slot, and a '
        'chunk of a byte to each now and then',
        promise='all slots come back before it disconnects')
def streams_dripped(trial):
  one, streams, drip = begin_streams(trial, trial.server.tcp, SLOTS)
  one.wait_for(lambda: one.begun.issuperset(streams), 3)
  trial.figure(f'{len(one.begun)} let in')
  client = trial.client(trial.server.unix)
  back(trial, 'the slots', lambda: free_slots(client, SLOTS) == SLOTS, drip)


@attack('streams-without-header', sends='as many streams as slots, without a '
        'header', promise='others\' streams are let in while it is there; its '
        'own are told DEADLINE_EXCEEDED')
def streams_without_header(trial):
  one = trial.connect()
  block, streams = header_block('AttentionStream'), one.new_streams(SLOTS)
  one.send(b''.join(frame(HEADERS, block, END_HEADERS, s) for s in streams))
  client = trial.client(trial.server.unix)
  back(trial, 'streams', lambda: budget_free(
      client, trial.settings['memory-budget-bytes']))
  one.wait_for(lambda: one.over.issuperset(streams), ENDED_SECONDS)
  codes = {one.statuses.get(s) for s in streams}
  trial.require(codes == {DEADLINE_EXCEEDED}, f'the streams end with {codes}')


@attack('streams-unread', sends='whole streams whose answers it does not read',
        promise='all slots come back before it disconnects')
def streams_unread(trial):
  client = trial.client()
  one = trial.connect(window=0)
  array = np.ones((64, 64), np.float32)
  body = b''.join(message(m.SerializeToString()) for m in client.messages(
      client.request(array, array, array)))
  block = header_block('AttentionStream')
  for _ in range(SLOTS):
    one.send_data(one.open(block), body, end=True, seconds=5)
  other = trial.client(trial.server.unix)
  back(trial, 'the slots', lambda: free_slots(other, SLOTS) == SLOTS)


@attack('drain-beside-waiters', server=False, sends='unread and unfinished '
        'calls of all these kinds, then SIGTERM',
        promise='exit code 0 within --drain-timeout '
        'and a few seconds')
def drain_beside_waiters(trial):
  server = trial.server = trial.start(settings={'stream-idle-timeout': 60})
  hold_by_benchmarks(trial, server.tcp, 2)
  begin_streams(trial, server.tcp, 2)
  ask_for_much(trial, trial.connect(server.tcp, window=0), 4)
  half = trial.connect(server.tcp)
  half.send_data(half.open(header_block('Attention')),
                 message(b'half of it', claimed=1 << 20))
  silent = trial.connect(server.tcp)
  for _ in range(100):
    silent.open(header_block('Attention'))
  exits_in_time(trial, server)


def exits_in_time(trial, server):
  """Requires that SIGTERM ends the server with exit code 0 within the time for
  draining."""
  start = time.monotonic()
  server.signal()
  limit = (DRAIN_SECONDS + 5) * (3 if trial.sanitized else 1)
  if not trial.require(
      within(limit, lambda: server.process.poll() is not None) is not None,
      f'SIGTERM is not obeyed after {limit} s'):
    return
  trial.figure(f'exit code {server.process.returncode} '
               f'{time.monotonic() - start:.1f} s after SIGTERM')
  trial.require(server.process.returncode == 0,
                f'exit code {server.process.returncode}')
