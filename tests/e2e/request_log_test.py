"""Tests the lines of the log for requests, the ids of requests, and the trace
context that clients send."""

import os
import random
import signal
import string
import threading

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from support import http2, request_log, work
from support.client import Client
from support.raw_http2 import RawConnection, Reader, header_block
from support.server import Server, open_channel, poll_until

CALLERS = 16
# A longer run: ATTND_LOG_CALLS=100000.
CALLS = int(os.environ.get('ATTND_LOG_CALLS', 20000))
AT_ONCE = 50  # calls of a caller
TOKEN = 'a-token-that-nobody-may-read'
SERVICE = '/attnd.v1.AttentionService/'
TRACEPARENT = 'traceparent'
TRACE_ID, SPAN_ID = '0af7651916cd43dd8448eb211c80319c', 'b7ad6b7169203331'
VALID = (
    f'00-{TRACE_ID}-{SPAN_ID}-01', f'00-{TRACE_ID}-{SPAN_ID}-00',
    f'cc-{TRACE_ID}-{SPAN_ID}-01', f'cc-{TRACE_ID}-{SPAN_ID}-01-future')
INVALID = (
    '', 'x', f'00-{TRACE_ID}-{SPAN_ID}-01-future', f'00-{TRACE_ID}-{SPAN_ID}',
    f'ff-{TRACE_ID}-{SPAN_ID}-01', f'00-{TRACE_ID.upper()}-{SPAN_ID}-01',
    f'00-{"0" * 32}-{SPAN_ID}-01', f'00-{TRACE_ID}-{"0" * 16}-01',
    f'00-{TRACE_ID}-{SPAN_ID}-0x', f'00-"{TRACE_ID[1:]}-{SPAN_ID}-01')


def name_of(code):
  """Returns the name of a status code of gRPC, from its number."""
  return next(c.name for c in grpc.StatusCode if c.value[0] == code)


def stopped_log(server):
  """Stops the server and returns everything that it wrote."""
  server.signal()
  assert server.wait() == 0
  return server.log_bytes()


def small(pb):
  """Returns a request that the server answers."""
  return pb.SelfAttentionRequest(sequence=pb.Tensor(
      dtype=pb.DATA_TYPE_F32, shape=[1, 2, 2],
      data=np.ones(4, np.float32).tobytes())).SerializeToString()


class HostileCaller:
  """Makes calls with bytes in their paths and headers that are meant to break
  lines, and records which code each of them gets."""

  def __init__(self, number, right_request):
    self._random = random.Random(number)
    self._number = number
    self._request = right_request
    self._made = 0
    self.codes = {}  # of calls, by what identifies their line

  def _bytes(self, most):
    hostile = (b'"', b'\\', b'\n', b'\r', b'\0', b'\x1b[2J', b' code=OK',
               b'"}\n{"level":"info"}', b'\xff', b'\xc3\xbc', b'\xe2\x80\xa8',
               b'\xed\xa0\x80', b'%s%n{}', b'\\u0000', b'\x7f')
    out = b''
    while len(out) < most and self._random.random() < 0.9:
      out += (self._random.choice(hostile) if self._random.random() < 0.5
              else self._random.randbytes(self._random.randrange(1, 20)))
    return out[:most]

  def _call(self):
    """Returns what identifies the line, the headers and the message."""
    self._made += 1
    trace = f'{self._number + 1:016x}{self._made:016x}'
    headers = {'authorization': f'Bearer {TOKEN}', 'x-hostile': self._bytes(99),
               'user-agent': self._bytes(40)}
    kind = self._random.randrange(4)
    if kind == 0:
      mark = f'-{self._number}-{self._made}'
      headers[TRACEPARENT] = self._random.choice(
          (*INVALID, self._bytes(80), None))
      return mark, '/' + (self._bytes(150).decode('latin1') + mark), headers, b''
    headers[TRACEPARENT] = f'00-{trace}-{SPAN_ID}-01'
    method = self._random.choice(
        ('SelfAttention', 'Attention', 'AttentionBackward', 'MemoryEstimate',
         'GetServerInfo', 'AttentionStream', 'Benchmark'))
    if kind == 1:
      return trace, SERVICE + method, headers, self._bytes(60)
    return trace, SERVICE + 'SelfAttention', headers, self._request

  def run(self, address, reader, calls):
    while calls > 0:
      with RawConnection(address, reader) as connection:
        streams = {}
        for _ in range(min(AT_ONCE, calls)):
          identity, path, headers, payload = self._call()
          block = http2.request_headers(path.encode('latin1'), headers)
          streams[identity] = connection.call(block, payload)
        for identity, stream in streams.items():
          self.codes[identity] = connection.wait_over(stream, 300)
        calls -= len(streams)


@pytest.mark.parametrize('log_format', request_log.FORMATS)
def test_hostile_requests_have_one_right_line_each(attnd, pb, log_format):
  callers = [HostileCaller(i, small(pb)) for i in range(CALLERS)]
  with Server(attnd, '--log-level=debug', f'--log-format={log_format}',
              '--max-benchmark-seconds=0.01') as server, Reader() as reader:
    threads = [
        threading.Thread(target=caller.run,
                         args=(server.tcp, reader, CALLS // CALLERS))
        for caller in callers]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    log = stopped_log(server)
  assert TOKEN.encode() not in log
  assert b'Bearer' not in log
  expected = {}
  for caller in callers:
    expected |= caller.codes
  lines = request_log.requests(log, log_format)
  assert len(expected) == len(lines) == CALLS // CALLERS * CALLERS
  found = {}
  for line in lines:
    identity = line.get('trace_id') or line['method'][line['method'].rindex(
        '-', 0, line['method'].rindex('-')):]
    assert identity not in found
    found[identity] = line['code']
  assert found == {
      identity: name_of(code) for identity, code in expected.items()}
  assert len(set(found.values())) > 2  # of several kinds


@pytest.fixture(params=request_log.FORMATS)
def log_format(request):
  return request.param


class TracedCalls:
  """Makes calls that can be found in the log by their traces."""

  def __init__(self):
    self.codes = {}  # by trace id
    self._calls = []

  def metadata(self):
    """Returns metadata for one more call, which settle() or note() completes."""
    trace = f'{len(self.codes) + 1:032x}'
    self.codes[trace] = None
    return trace, [(TRACEPARENT, f'00-{trace}-{SPAN_ID}-01')]

  def add(self, start):
    """Calls start(metadata), which returns a call."""
    trace, metadata = self.metadata()
    call = start(metadata)
    self._calls.append((trace, call))
    return call

  def settle(self):
    """Waits for the calls, and notes the codes that the client got."""
    for trace, call in self._calls:
      self.codes[trace] = call.code().name

  def check(self, log, log_format):
    lines = [line for line in request_log.requests(log, log_format)
             if 'trace_id' in line]
    assert {line['trace_id']: line['code'] for line in lines} == self.codes
    assert len(lines) == len(self.codes)
    return {line['trace_id']: line for line in lines}


def test_each_end_of_a_call_has_a_line_with_its_code(attnd, stubs, log_format):
  calls = TracedCalls()
  with Server(attnd, '--log-level=debug', f'--log-format={log_format}',
              '--max-in-flight=1') as server, \
      open_channel(server.tcp) as channel, open_channel(server.tcp) as second:
    client, own = Client(stubs, channel), Client(stubs, second)
    pb, stub = client.pb, own.stub
    request = work.small_request(client)
    answered = calls.add(
        lambda m: stub.SelfAttention.future(request, metadata=m))
    answered.result()
    calls.add(lambda m: stub.SelfAttention.future(
        pb.SelfAttentionRequest(), metadata=m)).exception()
    calls.add(lambda m: second.unary_unary(SERVICE + 'Attention').future(
        b'\xff\xff', metadata=m)).exception()
    calls.add(lambda m: second.unary_unary(SERVICE + 'Nothing').future(
        b'', metadata=m)).exception()
    calls.add(lambda m: stub.GetServerInfo.future(
        pb.GetServerInfoRequest(), metadata=m)).result()
    benchmark = calls.add(lambda m: stub.Benchmark(
        pb.BenchmarkRequest(num_vectors=64), metadata=m))
    assert list(benchmark)
    tensors = [np.ones((1, 1, 4, 4), np.float32)] * 3
    stream = calls.add(lambda m: stub.AttentionStream(
        own.messages(own.request(*tensors)), metadata=m))
    own.answer(stream)
    # A client cancels a call, and another one is refused meanwhile.
    endless = work.endless_request(own)
    trace, metadata = calls.metadata()
    del calls.codes[trace]

    def hold():
      return calls.add(
          lambda m: stub.SelfAttention.future(endless, metadata=m))

    held = work.hold_slot(client, hold)
    calls.add(lambda m: stub.SelfAttention.future(
        request, metadata=m)).exception()
    held.cancel()
    work.wait_until_free(client)
    work.hold_slot(client, lambda: calls.add(
        lambda m: stub.SelfAttention.future(endless, metadata=m,
                                            timeout=5))).exception()
    work.wait_until_free(client)
    # Streams that wait for their clients, with deadlines that gRPC rounds.
    never = threading.Event()
    for timeout in (2.001, 3.003):
      waiting = calls.add(lambda m, t=timeout: stub.AttentionStream(
          iter(never.wait, None), metadata=m, timeout=t))
      assert waiting.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    never.set()
    calls.settle()
    # A client whose connection breaks gets no code. The server calls that
    # CANCELLED.
    trace, metadata = calls.metadata()
    calls.codes[trace] = 'CANCELLED'
    with http2.Connection(server.tcp) as lost:
      lost.open_stream(SERVICE + 'AttentionStream', headers=dict(metadata))
      poll_until(lambda: client.stub.GetServerInfo(
          pb.GetServerInfoRequest()).load.connections >= 3, 60, 'a connection')
      lost.send(http2.frame(http2.PING, bytes(8)))
      lost.take_frames(60)
    poll_until(lambda: trace in server.log(), 60, 'the end of a stream')
    log = stopped_log(server)
  lines = calls.check(log, log_format)
  kinds = {line['code'] for line in lines.values()}
  assert kinds >= {'OK', 'INVALID_ARGUMENT', 'UNIMPLEMENTED', 'CANCELLED',
                   'RESOURCE_EXHAUSTED', 'DEADLINE_EXCEEDED'}
  assert {line.get('reason') for line in lines.values()} >= {
      None, 'TOO_MANY_REQUESTS', 'MALFORMED_MESSAGE', 'NOT_IMPLEMENTED'}
  for line in lines.values():
    assert line['peer'].startswith(('ipv4:127.0.0.1:', 'unix:')), line
  first = lines[f'{1:032x}']
  assert first['method'] == 'SelfAttention'
  assert first['received_bytes'] == request.ByteSize()
  assert first['sent_bytes'] == answered.result().ByteSize()
  assert first['total_us'] >= first['queue_us'] + first['compute_us']


def test_a_request_that_fails_has_its_id_in_the_trailers(
    attnd, stubs, log_format):
  with Server(attnd, '--log-level=debug',
              f'--log-format={log_format}') as server, \
      open_channel(server.tcp) as channel:
    stub, pb = Client(stubs, channel).stub, stubs[0]
    traced = [(TRACEPARENT, VALID[0])]
    bad = [stub.SelfAttention.future(pb.SelfAttentionRequest(), metadata=m)
           for m in (None, traced)]
    trailers = [dict(call.exception().trailing_metadata()) for call in bad]
    good, call = stub.GetServerInfo.with_call(pb.GetServerInfoRequest())
    assert good.version
    assert 'attnd-request-id' not in dict(call.trailing_metadata())
    lines = request_log.requests(stopped_log(server), log_format)
  by_id = {line['id']: line for line in lines}
  plain, with_trace = (by_id[each['attnd-request-id']] for each in trailers)
  assert 'trace_id' not in plain and TRACEPARENT not in trailers[0]
  assert with_trace['trace_id'] == TRACE_ID
  assert trailers[1][TRACEPARENT] == (
      f'00-{TRACE_ID}-{with_trace["span_id"]}-01')


def test_a_valid_trace_context_returns_with_a_new_span(attnd, stubs):
  with Server(attnd, '--log-level=debug', '--log-format=json') as server, \
      open_channel(server.tcp) as channel:
    stub, pb = Client(stubs, channel).stub, stubs[0]
    spans = []
    for value in VALID:
      _, call = stub.GetServerInfo.with_call(
          pb.GetServerInfoRequest(), metadata=[(TRACEPARENT, value)])
      version, trace, span, flags = dict(
          call.trailing_metadata())[TRACEPARENT].split('-')
      assert (version, trace) == ('00', TRACE_ID)
      assert flags == value.split('-')[3]
      assert len(span) == 16 and set(span) <= set(string.hexdigits.lower())
      spans.append(span)
    lines = request_log.requests(stopped_log(server), 'json')
  assert len({SPAN_ID, *spans}) == len(VALID) + 1
  # The order of lines is that in which gRPC ends the calls.
  assert sorted(line['span_id'] for line in lines) == sorted(spans)
  assert {line['trace_id'] for line in lines} == {TRACE_ID}


def test_an_invalid_trace_context_is_ignored(attnd, stubs):
  with Server(attnd, '--log-level=debug', '--log-format=json') as server, \
      open_channel(server.tcp) as channel:
    stub, pb = Client(stubs, channel).stub, stubs[0]
    for value in INVALID:
      answer, call = stub.GetServerInfo.with_call(
          pb.GetServerInfoRequest(), metadata=[(TRACEPARENT, value)])
      assert answer.version
      assert not call.trailing_metadata()
    with Reader() as reader, RawConnection(server.tcp, reader) as raw:
      twice = header_block('GetServerInfo') + 2 * http2.header(
          TRACEPARENT, VALID[0])
      assert raw.wait_over(raw.call(twice, b''), 60) == 0
    log = stopped_log(server)
  assert len(request_log.requests(log, 'json')) == len(INVALID) + 1
  for word in (b'trace_id', TRACE_ID.encode(), TRACE_ID.upper().encode(),
               SPAN_ID.encode()):
    assert word not in log


def test_sigusr1_switches_the_lines_of_requests_on_and_off(
    attnd, stubs, log_format):
  phases = [set() for _ in range(3)]  # the trace ids of calls
  with Server(attnd, '--log-level=error',
              f'--log-format={log_format}') as server, \
      open_channel(server.tcp) as channel:
    stub, pb = Client(stubs, channel).stub, stubs[0]

    def make_calls(number):
      for _ in range(20):
        trace = f'{number + 1:016x}{len(phases[number]) + 1:016x}'
        stub.GetServerInfo(pb.GetServerInfoRequest(), metadata=[
            (TRACEPARENT, f'00-{trace}-{SPAN_ID}-01')])
        phases[number].add(trace)

    make_calls(0)
    server.signal(signal.SIGUSR1)
    poll_until(lambda: 'log level is debug' in server.log(), 60, 'debug')
    make_calls(1)
    # A line comes after its answer.
    poll_until(lambda: all(trace in server.log() for trace in phases[1]),
               60, 'the lines')
    server.signal(signal.SIGUSR1)
    poll_until(lambda: 'log level is error again' in server.log(), 60, 'error')
    make_calls(2)
    log = stopped_log(server)
  logged = {line['trace_id'] for line in request_log.requests(log, log_format)}
  assert logged >= phases[1]
  # The level counts when gRPC ends a call, which is after its answer. So some
  # of the calls next to a signal can have a line, but not all of these.
  assert len(logged & phases[0]) < len(phases[0])
  assert len(logged & phases[2]) < len(phases[2])
  lines = request_log.parse(log, log_format)
  assert [line['message'] for line in lines if 'id' not in line] == [
      'SIGUSR1: the log level is debug until the next SIGUSR1',
      'SIGUSR1: the log level is error again, as --log-level says']


def test_every_line_is_json(attnd, stubs):
  """Lines of the start, of warnings, of gRPC, of signals and of the end."""
  with Server(attnd, '--log-format=json', '--log-level=debug', admin='127.0.0.1:0',
              environment={'ATTND_PORT': '7"\n'}) as server, \
      open_channel(server.tcp) as channel, Reader() as reader:
    with RawConnection(server.tcp, reader) as raw:
      block = header_block('GetServerInfo', grpc_encoding='x"\n\x1b{}\xff')
      raw.wait_over(raw.call(block, b''), 60)
    # gRPC answers health checks and reflection, which have no lines.
    health = health_pb2_grpc.HealthStub(channel)
    assert health.Check(health_pb2.HealthCheckRequest(), timeout=60).status
    list_services = b'\x3a\0'
    reflection = channel.stream_stream(
        '/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo')
    assert b'attnd.v1' in next(reflection(iter([list_services]), timeout=60))
    server.signal(signal.SIGHUP)
    poll_until(lambda: 'signal 1 ' in server.log(), 60, 'a line of SIGHUP')
    lines = request_log.parse(stopped_log(server), 'json')
  text = '\n'.join(line['message'] for line in lines)
  for part in ('ATTND_PORT names no option', 'serves on', 'gRPC ',
               'signal 15: stopping', 'draining', 'stopped'):
    assert part in text, part
  assert [line['message'] for line in lines].count('request') == 1
  assert {line['level'] for line in lines} >= {
      'debug', 'info', 'warning', 'error'}
