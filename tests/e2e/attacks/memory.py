"""Attacks on the memory that a server uses before it has admitted a call."""

import collections
import concurrent.futures
import itertools
import threading
import time

from attacks import harness
from attacks.harness import (MIB, SLACK, Process, arriving_bytes, attack,
                             computes, promised_bytes)
from attacks.readers import ENDED_SECONDS, within
from support.http2 import (DATA, END_HEADERS, HEADERS, PING, RST_STREAM,
                           SETTINGS, WINDOW_UPDATE, frame, header,
                           hpack_number)
from support.raw_http2 import (CANCEL, CONTINUATION, END_STREAM, PRIORITY,
                               header_block, message)

REFLECTION = '/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo'
WATCH = '/grpc.health.v1.Health/Watch'
# The bytes that attnd counts for a call without a message.
CALL_BYTES = 16 << 10
# With this small budget and small messages, the limit is 384 MiB.
SMALL = {'memory-budget-bytes': 64 * MIB, 'max-message-bytes': 4 * MIB}
# For connections that have to be ended because of a size, whatever time it
# takes.
PATIENT = {**SMALL, 'stream-idle-timeout': 60}


def storm(trial, connections, count, make, seconds, batch=500):
  """Calls make(connection, streams) until `count` streams were sent.

  The connections go to the listeners in turn. Connections that the server ends
  are opened again, as an attacker would do. Returns (streams sent, connections
  ended).
  """
  limit = time.monotonic() + seconds
  opened, addresses = [None] * connections, trial.server.addresses
  sent = ended = 0
  for turn in itertools.cycle(range(connections)):
    if sent >= count or time.monotonic() > limit:
      break
    try:
      if opened[turn] is None:
        opened[turn] = trial.connect(addresses[turn % len(addresses)],
                                     seconds=20)
      streams = opened[turn].new_streams(batch)
      if opened[turn].send(make(opened[turn], streams)):
        sent += batch
        continue
    except OSError:  # refused, or ended at once
      time.sleep(0.01)
    ended += 1
    if opened[turn] is not None:
      opened[turn].close()
      opened[turn] = None
  return sent, ended


def opened_and_reset(method):
  """Returns the frames of calls that are reset before anything else is sent."""
  block = header_block(method)

  def make(_, streams):
    return b''.join(frame(HEADERS, block, END_HEADERS, s) +
                    frame(RST_STREAM, CANCEL, stream=s) for s in streams)
  return make


@attack('reset-info', sends='HEADERS and RST_STREAM of GetServerInfo on one '
        'connection, again and again',
        promise='the memory stays within its limit',
        settings=SMALL)
def reset_info(trial):
  for _ in range(trial.pick(4, 2)):
    sent, ended = storm(trial, 1, 40_000, opened_and_reset('GetServerInfo'), 10)
    trial.figure(f'{sent} resets, {ended} connections ended')


@attack('reset-hidden', sends='a call with an even number, which no client '
        'can use, and then resets of GetServerInfo',
        promise='the memory stays within its limit',
        settings=SMALL)
def reset_hidden(trial):
  block, make_resets = header_block('GetServerInfo'), opened_and_reset(
      'GetServerInfo')

  def make(connection, streams):
    first = frame(HEADERS, block, END_HEADERS | END_STREAM, 0x7ffffffe)
    return (first if streams[0] == 1 else b'') + make_resets(
        connection, streams)
  sent, ended = storm(trial, 1, 40_000, make, 10)
  trial.figure(f'{sent} resets, {ended} connections ended')


@attack('reset-attention', sends='HEADERS and RST_STREAM of Attention on four '
        'connections',
        promise='the memory stays within its limit', settings=SMALL)
def reset_attention(trial):
  sent, ended = storm(trial, 4, trial.pick(300_000, 120_000),
                      opened_and_reset('Attention'), trial.pick(25, 10))
  trial.figure(f'{sent} resets, {ended} connections ended')


@attack('reset-messages', sends='whole messages of 48 KiB to Attention, each '
        'reset when it is sent', promise='connections are ended for more of '
        'them than 2048 and 2000 a second; the memory stays within its limit',
        settings=SMALL)
def reset_messages(trial):
  block, body = header_block('Attention'), message(bytes(48 << 10))
  seconds = trial.pick(15, 3)
  limit = time.monotonic() + seconds
  connections = [None] * 4
  sent = ended = 0
  for turn in itertools.cycle(range(4)):
    if time.monotonic() > limit:
      break
    try:
      one = connections[turn]
      if one is None or one.gone:
        ended += one is not None
        one = connections[turn] = trial.connect(
            trial.server.addresses[turn % 2], seconds=2)
      for stream in one.new_streams(20):
        one.open(block, stream=stream)
        one.send_data(stream, body, seconds=1)
        one.send(frame(RST_STREAM, CANCEL, stream=stream))
        sent += 1
    except OSError:
      connections[turn] = None
      time.sleep(0.01)
  trial.figure(f'{sent} messages reset, {ended} connections ended')
  # A slow machine does not send more than the allowed rate.
  trial.require(ended or sent < 2 * (2048 + 2000 * seconds),
                f'{sent} resets do not end a connection')


@attack('resets-counted', sends='4000 resets on one connection, then 1900 on '
        'each of eight, which each of them may', promise='the one is ended, '
        'and some of the eight')
def resets_counted(trial):
  make = opened_and_reset('Attention')

  def send(count):
    one = trial.connect()
    one.send(make(one, one.new_streams(count)))
    return one
  one = send(4000)
  one.wait_for(lambda: False, 5)
  trial.require(one.ended, '4000 resets do not end a connection')
  eight = [send(1900) for _ in range(8)]
  ended = within(5, lambda: any(c.ended for c in eight))
  # The allowed rate permits as many as a build with sanitizers can read.
  trial.require(ended is not None or trial.sanitized,
                '15,200 resets do not end one of eight connections')
  trial.figure(f'{sum(c.ended for c in eight)} of eight ended')


@attack('calls-counted', sends='3000 calls of headers alone, on a connection '
        'that acknowledges no SETTINGS; 1000 on each of twenty', promise='the '
        'one is ended; so are as many of the twenty as hold calls for more '
        'than a quarter of the memory for arriving messages; half of it is '
        'not passed', settings={'stream-idle-timeout': 60})
def calls_counted(trial):
  block = header_block('Attention')

  def send(count, **how):
    one = trial.connect(seconds=5, **how)
    one.send(b''.join(frame(HEADERS, block, END_HEADERS, s)
                      for s in one.new_streams(count)))
    return one
  before = trial.process.resident_bytes()
  unacknowledged = send(3000, reads=False)
  unacknowledged.flush(5)
  trial.require(unacknowledged.ended, '3000 calls do not end a connection that '
                'may have 1024')
  connections = [send(1000) for _ in range(20)]
  share = arriving_bytes(trial.settings)
  most = share // 4 // CALL_BYTES
  open_calls = lambda: 1000 * sum(not c.ended for c in connections)
  within(30 if trial.sanitized else 10, lambda: open_calls() <= most)
  grown = trial.process.peak_bytes() - before
  trial.figure(f'{open_calls()} of 20,000 calls stay open, {grown / MIB:.0f} '
               'MiB more')
  trial.require(open_calls() <= most, f'{open_calls()} calls are open, which '
                f'is more than {most}')
  trial.require(trial.sanitized or grown <= share // 2,
                f'calls of headers alone took {grown / MIB:.0f} MiB')


@attack('calls-of-many-slots', server=False, sends='1000 calls of headers '
        'alone on each of many connections, where --max-in-flight is 50,000',
        promise='the memory stays within its limit; it serves afterwards')
def calls_of_many_slots(trial):
  settings = {**harness.SETTINGS, **SMALL, 'max-in-flight': 50_000}
  server = trial.server = trial.start(settings=settings)
  process = Process(server.process.pid)
  block, connections = header_block('Attention'), []
  for _ in range(trial.pick(200, 80)):
    try:
      one = trial.connect(server.tcp, seconds=5)
    except OSError:
      continue
    connections.append(one)
    one.send(b''.join(frame(HEADERS, block, END_HEADERS, s)
                      for s in one.new_streams(1000)))
  time.sleep(1)
  peak, promise = process.peak_bytes(), promised_bytes(settings)
  text = f'RSS {peak / MIB:.0f} of {promise / MIB:.0f} MiB'
  trial.figure(text)
  trial.require(trial.sanitized or peak <= promise * SLACK, f'memory: {text}')
  for one in connections:
    one.close()
  client = trial.client(server.unix)
  served = within(10, lambda: computes(client) is None)
  trial.require(served is not None, 'no small call is answered')


@attack('headers-alone', sends='calls of headers alone, 1000 on each of many '
        'connections, and silence',
        promise='the memory stays within its limit; each call is ended after '
        '--stream-idle-timeout')
def headers_alone(trial):
  block = header_block('Attention')
  connections = []
  for _ in range(trial.pick(100, 40)):
    try:
      connections.append(trial.connect(seconds=2))
    except OSError:
      continue
    connections[-1].send(b''.join(
        frame(HEADERS, block, END_HEADERS, s)
        for s in connections[-1].new_streams(1000)))
  limit = time.monotonic() + ENDED_SECONDS
  for one in connections:
    one.wait_for(lambda one=one: len(one.over) >= 1000,
                 max(0.01, limit - time.monotonic()))
  going_on = sum(1000 - len(c.over) for c in connections if not c.ended)
  trial.figure(f'{len(connections)} connections')
  trial.require(going_on == 0, f'{going_on} calls without a message are still '
                f'open after {ENDED_SECONDS:.1f} s')


def half_sent(trial, go_on):
  """Begins messages of 4 MiB, and calls go_on(connections) until the attack is
  over."""
  block = header_block('Attention')
  begin = message(bytes(MIB), claimed=4 * MIB)
  connections = []
  for _ in range(trial.pick(40, 20)):
    try:
      one = trial.connect(seconds=2)
    except OSError:
      continue
    connections.append(one)
    one.stream = one.open(block)
    one.send_data(one.stream, begin, seconds=2)
  limit = time.monotonic() + ENDED_SECONDS
  going_on = connections
  while time.monotonic() < limit and going_on:
    go_on(going_on)
    time.sleep(0.3)
    going_on = [c for c in going_on if not c.gone and c.stream not in c.over]
  trial.figure(f'{len(connections)} messages begun')
  trial.require(not going_on, f'{len(going_on)} half-sent messages still wait '
                f'after {ENDED_SECONDS:.1f} s')


@attack('half-sent-silent', sends='the first MiB of messages of 4 MiB, then '
        'nothing', promise='ended after --stream-idle-timeout', settings=SMALL)
def half_sent_silent(trial):
  half_sent(trial, lambda _: None)


@attack('half-sent-dripping', sends='the first MiB of messages of 4 MiB, then '
        'a byte now and then', promise='ended after --stream-idle-timeout',
        settings=SMALL)
def half_sent_dripping(trial):
  half_sent(trial, lambda connections: [
      c.send_data(c.stream, b'\0', seconds=0.01) for c in connections])


def large_calls(trial, over):
  """Makes calls of 4 MiB, whose messages the workers free, until `over` is
  set.

  Returns gRPC's status codes. None stands for a call that was reset, or whose
  connection was ended.
  """
  tensor = lambda rows, columns: trial.pb.Tensor(
      dtype=trial.pb.DATA_TYPE_F32, shape=[rows, columns],
      data=bytes(4 * rows * columns))
  body = message(trial.pb.AttentionRequest(
      query=tensor(MIB // 4, 4), key=tensor(1, 4),
      value=tensor(1, 1)).SerializeToString())
  block, codes, one = header_block('Attention'), collections.Counter(), None
  while not over.is_set() and trial.server.process.poll() is None:
    try:
      if one is None or one.gone:
        one = trial.connect(seconds=2)
      stream = one.open(block)
      one.send_data(stream, body, end=True, seconds=5)
      codes[one.wait_over(stream, 10)] += 1
    except OSError:
      time.sleep(0.01)
  return codes


@attack('arriving-full', sends='messages of 8 MiB that lack their end, more '
        'than there is memory for, while four clients send whole ones',
        promise='the server lives on; some of the whole ones are answered; the '
        'memory stays within its limit', tolerance=1,
        # A client whose connection gRPC ends connects again a second later, or
        # more.
        health_ms=5000, fresh=False, settings={
            'memory-budget-bytes': 64 * MIB, 'max-message-bytes': 8 * MIB})
def arriving_full(trial):
  block = header_block('Attention')
  body = message(bytes(8 * MIB - 65536), claimed=8 * MIB)
  over = threading.Event()
  opened, begun, codes = collections.deque(), 0, collections.Counter()
  limit = time.monotonic() + trial.pick(20, 4)
  with concurrent.futures.ThreadPoolExecutor() as pool:
    calls = [pool.submit(large_calls, trial, over) for _ in range(4)]
    try:
      while (time.monotonic() < limit and
             trial.server.process.poll() is None):
        try:
          one = trial.connect(seconds=2)
        except OSError:
          continue
        one.send_data(one.open(block), body, seconds=0.5)
        opened.append(one)
        begun += 1
        if len(opened) > 30:
          opened.popleft().close()
    finally:
      over.set()
      for one in opened:
        one.close()
    for one in calls:
      codes += one.result()
  trial.figure(f'{begun} messages begun; of {codes.total()} whole ones '
               f'{codes[0]} are answered')
  trial.require(codes[0], f'no whole message is answered: {dict(codes)}')


@attack('health-watches', sends='10,000 calls of health\'s Watch on ten '
        'connections',
        promise='the memory stays within its limit', settings=SMALL)
def health_watches(trial):
  block = header_block(WATCH)
  body = frame(DATA, message(b''), END_STREAM)
  connections = [trial.connect() for _ in range(10)]
  for one in connections:
    streams = one.new_streams(1000)
    for at in range(0, 1000, 100):
      one.send(b''.join(
          frame(HEADERS, block, END_HEADERS, s) +
          body[:5] + s.to_bytes(4, 'big') + body[9:]
          for s in streams[at:at + 100]))
  for one in connections:
    one.wait_for(lambda one=one: len(one.begun) >= 1000, 5)
  trial.figure(f'{sum(len(c.begun) for c in connections)} answered, '
               f'{sum(c.ended for c in connections)} connections ended')


@attack('reflection-streams', sends='3000 reflection streams that stay open',
       
        promise='at most 40 threads; the memory stays within its limit', settings=SMALL)
def reflection_streams(trial):
  block = header_block(REFLECTION)
  for _ in range(4):
    one = trial.connect()
    one.send(b''.join(frame(HEADERS, block, END_HEADERS, s)
                      for s in one.new_streams(750)))
  threads, limit = 0, time.monotonic() + trial.pick(4, 2)
  while time.monotonic() < limit:
    threads = max(threads, trial.process.threads())
    time.sleep(0.05)
  trial.figure(f'{threads} threads')
  trial.require(threads <= 40, f'{threads} threads')


def endless_header(trial, first, piece, pieces, connections=1):
  """Returns a header block of `pieces` CONTINUATION frames that does not
  end."""
  cpu, start = trial.process.cpu_seconds(), time.monotonic()
  opened = [trial.connect(seconds=2) for _ in range(connections)]
  sent = {one: 0 for one in opened}
  for one in opened:
    one.send(frame(HEADERS, first, 0, 1))
  going_on, limit = list(opened), time.monotonic() + trial.pick(20, 12)
  batch = max(1, min(pieces, 65536 // max(len(piece), 64)))
  data = frame(CONTINUATION, piece, 0, 1) * batch
  while going_on and time.monotonic() < limit:
    for one in going_on:
      one.send(data)
      sent[one] += batch
    going_on = [c for c in going_on if not c.gone and sent[c] < pieces]
  for one in opened:
    one.wait_for(lambda: False, max(0.01, min(3, limit - time.monotonic())))
  left = sum(not c.ended for c in opened)
  spent = trial.process.cpu_seconds() - cpu
  trial.figure(f'{sum(sent.values()) * len(piece) / MIB:.1f} MiB of header, '
               f'{spent:.1f} CPU s in {time.monotonic() - start:.1f} s')
  trial.require(left == 0, f'{left} connections with an endless header are '
                'still open')
  trial.require(spent <= (15 if trial.sanitized else 3),
                f'{spent:.1f} CPU s for an endless header')


@attack('header-value-endless', sends='a header whose value claims 2^31 bytes, '
        'in CONTINUATION frames without END_HEADERS',
        promise='at most 3 CPU s; the connection is ended', settings=PATIENT)
def header_value_endless(trial):
  first = (header_block('Attention') + b'\0' + bytes([4]) + b'long' +
           hpack_number(2**31 - 1, 7))
  endless_header(trial, first, b'a' * 16384, trial.pick(2000, 1300))


@attack('header-values-endless', short=False, sends='a header whose value '
        'claims 2^31 bytes, without END_HEADERS, on ten connections',
        promise='at most 3 CPU s; the connections are ended; '
        'the memory stays within its limit', settings=PATIENT)
def header_values_endless(trial):
  first = (header_block('Attention') + b'\0' + bytes([4]) + b'long' +
           hpack_number(2**31 - 1, 7))
  endless_header(trial, first, b'a' * 16384, 900, connections=10)


@attack('headers-endless', sends='small headers in CONTINUATION frames without '
        'END_HEADERS', promise='at most 3 CPU s; the connection is ended',
        settings=PATIENT)
def headers_endless(trial):
  endless_header(trial, header_block('Attention'), header('a', 'b') * 2000,
                 trial.pick(4000, 2000))


@attack('continuations-empty', sends='empty CONTINUATION frames without '
        'END_HEADERS', promise='at most 3 CPU s; the connection is ended',
        settings=PATIENT)
def continuations_empty(trial):
  endless_header(trial, header_block('Attention'), b'',
                 trial.pick(1_000_000, 300_000))


@attack('header-list-large', sends='whole header lists of 1 MiB',
        promise='the memory stays within its limit', settings=SMALL)
def header_list_large(trial):
  block = header_block('Attention') + header('long', 'a' * 8000) * 128
  pieces = [block[at:at + 16384] for at in range(0, len(block), 16384)]
  ended = 0
  for _ in range(trial.pick(40, 10)):
    one = trial.connect(seconds=2)
    for stream in one.new_streams(4):
      one.send(frame(HEADERS, pieces[0], 0, stream) + b''.join(
          frame(CONTINUATION, p, 0, stream) for p in pieces[1:-1]) +
               frame(CONTINUATION, pieces[-1], END_HEADERS, stream))
    ended += one.gone
  trial.figure(f'{ended} connections ended')


# --- floods of frames ---------------------------------------------------------


def flood(name, what, data, count, call=False, short=True, ended=False):
  """Adds an attack with a flood of one kind of frame to the table.

  ended: whether the server has to end the connection, because it would answer
  each of the frames.
  """

  @attack(name, short=short, settings=SMALL,
          sends=f'{what}, {count:,} times, and reads nothing',
          promise='the memory stays within its limit; others are served' +
          ('; the connection is ended' if ended else ''))
  def run(trial):
    one = trial.connect(reads=False, seconds=5)
    if call:
      one.open(header_block('Attention'))
    total = trial.pick(count, count // 3)
    batch = max(1, 65536 // len(data))
    block, sent = data * batch, 0
    limit = time.monotonic() + trial.pick(15, 6)
    while sent < total and time.monotonic() < limit and one.send(block):
      sent += batch
    taken = one.flush(5)
    trial.figure(f'{sent} sent, ' + (
        'all taken' if taken else 'the connection was ended' if one.ended else
        'the server took no more'))
    trial.require(one.ended or not ended, 'the connection is not ended')


flood('flood-ping', 'PING', frame(PING, b'12345678'), 1_000_000, ended=True)
flood('flood-settings', 'SETTINGS',
      frame(SETTINGS, (4).to_bytes(2, 'big') + (65535).to_bytes(4, 'big')),
      600_000, ended=True)
flood('flood-settings-window', 'SETTINGS that change the window of a stream',
      frame(SETTINGS, (4).to_bytes(2, 'big') + (1).to_bytes(4, 'big')) +
      frame(SETTINGS, (4).to_bytes(2, 'big') + (65535).to_bytes(4, 'big')),
      300_000, call=True, ended=True)
flood('flood-empty-data', 'empty DATA on an open call',
      frame(DATA, b'', 0, 1), 1_000_000, call=True)
flood('flood-priority', 'PRIORITY of streams that are not there',
      frame(PRIORITY, bytes(5), 0, 9), 1_000_000, short=False)
flood('flood-window-update', 'WINDOW_UPDATE of the connection',
      frame(WINDOW_UPDATE, (1).to_bytes(4, 'big')), 1_000_000, short=False)
flood('flood-unknown', 'frames of a type that there is not',
      frame(0x77, bytes(64), 0, 0), 500_000, short=False)
flood('flood-reset', 'RST_STREAM of a call that is over',
      frame(RST_STREAM, CANCEL, stream=1), 1_000_000, call=True, short=False)
