"""Tests the export of spans, in builds with OpenTelemetry. A small HTTP server
stands in for the collector of traces."""

import contextlib
import http.server
import json
import threading
import time

import grpc
import pytest

from support import request_log, work
from support.client import Client
from support.server import Server, open_channel

TRACE_ID, SPAN_ID = '0af7651916cd43dd8448eb211c80319c', 'b7ad6b7169203331'


class Collector(http.server.ThreadingHTTPServer):
  """Takes spans by OTLP in JSON. If `hangs` is set, it answers nobody."""

  daemon_threads = True

  def __init__(self, hangs=False):
    super().__init__(('127.0.0.1', 0), Handler)
    self.hangs = hangs
    self.over = threading.Event()
    self.paths = set()
    self.resources, self.spans = [], []

  @property
  def environment(self):
    return {'OTEL_EXPORTER_OTLP_ENDPOINT':
                f'http://127.0.0.1:{self.server_address[1]}',
            'OTEL_EXPORTER_OTLP_PROTOCOL': 'http/json'}


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers one request."""

  def do_POST(self):
    body = self.rfile.read(int(self.headers['Content-Length']))
    if self.server.hangs:
      self.server.over.wait()
      return
    self.server.paths.add(self.path)
    for resource in json.loads(body)['resourceSpans']:
      self.server.resources.append(resource['resource'])
      for scope in resource['scopeSpans']:
        self.server.spans += scope['spans']
    self.send_response(200)
    self.send_header('Content-Length', '2')
    self.end_headers()
    self.wfile.write(b'{}')

  def log_message(self, *_):
    pass


@contextlib.contextmanager
def collecting(**how):
  with Collector(**how) as collector:
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    try:
      yield collector
    finally:
      collector.over.set()
      collector.shutdown()
      thread.join()


def exporting(attnd, environment, *flags):
  return Server(attnd, '--trace-export=otlp', '--log-format=json', *flags,
                environment=environment)


def traced(flags='01', trace_id=TRACE_ID):
  return [('traceparent', f'00-{trace_id}-{SPAN_ID}-{flags}')]


def values(attributes):
  """Returns a list of OTLP's attributes as a dictionary."""
  return {a['key']: next(iter(a['value'].values())) for a in attributes}


def test_sampled_calls_have_spans(attnd, stubs):
  with collecting() as collector:
    with exporting(attnd, collector.environment,
                   '--log-level=debug') as server, \
        open_channel(server.tcp) as channel:
      client = Client(stubs, channel)
      request = work.small_request(client)
      before = time.time_ns()
      client.stub.SelfAttention(request, metadata=traced())
      client.stub.SelfAttention(request, metadata=traced('00', '1' * 32))
      client.stub.SelfAttention(request)
      with pytest.raises(grpc.RpcError):
        channel.unary_unary('/a.b/"\\x')(b'', metadata=traced())
      server.signal()
      assert server.wait() == 0
      after = time.time_ns()
      lines = {line['id']: line for line in request_log.requests(
          server.log_bytes(), 'json')}
  assert collector.paths == {'/v1/traces'}
  for resource in collector.resources:
    assert values(resource['attributes'])['service.name'] == 'attnd'
  good, unknown = sorted(collector.spans, key=lambda span: span['name'],
                         reverse=True)
  assert good['name'] == 'attnd.v1.AttentionService/SelfAttention'
  assert unknown['name'] == '/a.b/"\\x'
  assert good.get('status', {}) in ({}, {'code': 0})
  assert unknown['status']['code'] == 2
  for span, code in ((good, 0), (unknown, 12)):
    facts = values(span['attributes'])
    line = lines[facts['attnd.request.id']]
    assert span['traceId'].lower() == line['trace_id'] == TRACE_ID
    assert span['spanId'].lower() == line['span_id'] != SPAN_ID
    assert span['parentSpanId'].lower() == SPAN_ID
    assert int(facts['rpc.grpc.status_code']) == code
    assert before <= int(span['startTimeUnixNano'])
    assert int(span['startTimeUnixNano']) <= int(span['endTimeUnixNano'])
    assert int(span['endTimeUnixNano']) <= after


def test_the_environment_names_the_service(attnd, stubs):
  with collecting() as collector:
    environment = {**collector.environment, 'OTEL_SERVICE_NAME': 'mine'}
    with exporting(attnd, environment) as server, \
        open_channel(server.tcp) as channel:
      client = Client(stubs, channel)
      client.stub.SelfAttention(work.small_request(client), metadata=traced())
  (resource,) = collector.resources
  assert values(resource['attributes'])['service.name'] == 'mine'


def test_a_collector_that_hangs_stops_nothing(attnd, stubs):
  with collecting(hangs=True) as collector:
    with exporting(attnd, collector.environment) as server, \
        open_channel(server.tcp) as channel:
      client = Client(stubs, channel)
      request = work.small_request(client)
      # More spans than may wait, so that some are dropped.
      for _ in range(3000):
        client.stub.SelfAttention(request, metadata=traced(), timeout=60)
      server.signal()
      start = time.monotonic()
      assert server.wait(work.AT_ONCE_SECONDS) == 0
      print(f'the end took {time.monotonic() - start:.2f} s')


def test_a_collector_that_is_gone_stops_nothing(attnd, stubs):
  with Collector() as nobody:
    environment = nobody.environment
  with exporting(attnd, environment) as server, \
      open_channel(server.tcp) as channel:
    client = Client(stubs, channel)
    request = work.small_request(client)
    for _ in range(100):
      client.stub.SelfAttention(request, metadata=traced(), timeout=60)
    server.signal()
    assert server.wait(work.AT_ONCE_SECONDS) == 0
    lines = request_log.parse(server.log_bytes(), 'json')
  said = [line for line in lines if line['message'].startswith('OpenTelemetry')]
  assert len(said) == 1
  assert said[0]['level'] == 'warning'
