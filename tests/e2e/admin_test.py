"""Tests the admin port: what it answers over HTTP, that its estimates are those
of the rpc, and that no client of it affects the calls of gRPC."""

import csv
import http.client
import io
import json
import os
import re
import socket
import subprocess
import threading
import urllib.error
import urllib.request

import grpc
import pytest
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc

from support import work
from support.client import Client, Refusal
from support.server import (START_SECONDS, Server, clean_environment,
                            open_channel, poll_until)
from support.stubs import REPOSITORY

ESTIMATE = '/v1/memory-estimate'


@pytest.fixture(scope='module')
def server(attnd):
  with Server(attnd, '--max-in-flight=2', admin='127.0.0.1:0') as running:
    yield running


class Answer:
  """status, headers and text of an answer."""

  def __init__(self, response):
    self.status = response.status
    self.headers = response.headers
    self.text = response.read().decode()

  @property
  def json(self):
    assert self.headers['Content-Type'] == 'application/json', self.text
    return json.loads(self.text)

  @property
  def error(self):
    error = self.json['error']
    assert list(error) == ['code', 'message', 'field']
    return error


@pytest.fixture
def ask(server):
  """ask(path, ...) sends one request and returns the Answer."""

  def run(path, method='GET', body=None, **headers):
    request = urllib.request.Request(
        f'http://{server.admin}{path}', method=method, data=body,
        headers={name.replace('_', '-'): value
                 for name, value in headers.items()})
    try:
      with urllib.request.urlopen(request, timeout=60) as response:
        return Answer(response)
    except urllib.error.HTTPError as error:
      with error:
        return Answer(error)

  return run


@pytest.fixture
def post(ask):
  """post(question) asks for an estimate as JSON."""
  return lambda question: ask(
      ESTIMATE, 'POST', json.dumps(question).encode(),
      Content_Type='application/json')


def connect(server):
  host, port = server.admin.split(':')
  return socket.create_connection((host, int(port)), timeout=60)


def exchange(server, request):
  """Sends bytes and returns all that comes back."""
  with connect(server) as peer:
    try:
      peer.sendall(request)
      return b''.join(iter(lambda: peer.recv(65536), b''))
    except ConnectionError:
      return b''


def query(question, prefix=''):
  """Returns the parameters for a question in the JSON form of protobuf."""
  parts = []
  for name, value in question.items():
    if isinstance(value, dict):
      parts += query(value, f'{prefix}{name}.')
    elif isinstance(value, list):
      # Lists may be one parameter or several.
      if len(value) % 2:
        parts += [f'{prefix}{name}={each}' for each in value]
      elif value:
        parts.append(f'{prefix}{name}={",".join(map(str, value))}')
    else:
      text = str(value).lower() if isinstance(value, bool) else str(value)
      parts.append(f'{prefix}{name}={text}')
  return parts


def random_question(rng):
  """Returns a question in the JSON form of protobuf. Some are refused."""

  def pick(*values):
    return values[rng.integers(len(values))]

  def maybe(make):
    return make() if rng.integers(3) == 0 else None

  batch = int(rng.integers(1, 5))
  kv_heads = int(rng.integers(1, 9))
  q_heads = kv_heads * int(rng.integers(1, 5))
  q_len, kv_len = map(int, rng.integers(1, 1 << rng.integers(3, 20), 2))
  options = {
      'scale': maybe(lambda: float(rng.standard_normal())),
      'layout': maybe(lambda: pick('LAYOUT_BHSD', 'LAYOUT_BSHD')),
      'causal': maybe(lambda: pick('CAUSAL_TOP_LEFT', 'CAUSAL_BOTTOM_RIGHT')),
      'window_left': maybe(lambda: str(rng.integers(0, 1000))),
      'query_offsets': maybe(lambda: [str(rng.integers(-99, 99))]),
      'logits_soft_cap': maybe(lambda: pick(30.0, 0.5, -1.0)),
      'alibi_slopes': maybe(lambda: [0.5] * q_heads),
      'key_lengths': maybe(
          lambda: [str(x) for x in rng.integers(0, kv_len + 2, batch)]),
      'mask': maybe(lambda: {'dtype': 'DATA_TYPE_BOOL',
                             'shape': [str(q_len), str(kv_len)]}),
      'return_lse': maybe(lambda: True),
      'precision': maybe(lambda: pick('PRECISION_BF16', 'PRECISION_F32')),
  }
  question = {
      'batch': str(batch), 'num_q_heads': str(q_heads),
      'num_kv_heads': str(kv_heads), 'q_len': str(q_len),
      'kv_len': str(kv_len),
      'head_dim': str(pick(64, 128, 80, 1024, 1025)),
      'dtype': pick('DATA_TYPE_F32', 'DATA_TYPE_BF16', 'DATA_TYPE_F16'),
      'concurrency': maybe(lambda: str(rng.integers(1, 9))),
      'transport': maybe(lambda: pick('TRANSPORT_STREAM',
                                      'TRANSPORT_SHARED_MEMORY')),
      'options': {k: v for k, v in options.items() if v is not None},
  }
  return {k: v for k, v in question.items() if v is not None}


def as_rpc(client, question):
  """Returns (what the rpc answers, None) or (None, the field it refuses)."""
  request = json_format.ParseDict(question, client.pb.MemoryEstimateRequest())
  try:
    return client.stub.MemoryEstimate(request, timeout=60), None
  except grpc.RpcError as error:
    return None, Refusal(error).field


def test_the_estimates_are_those_of_the_rpc(client, ask, post, rng):
  answered = 0
  for _ in range(300):
    question = random_question(rng)
    expected, field = as_rpc(client, question)
    got = [ask(f'{ESTIMATE}?{"&".join(query(question))}'), post(question)]
    table = ask(f'{ESTIMATE}?{"&".join(query(question))}', Accept='text/csv')
    if expected is None:
      for answer in [*got, table]:
        assert answer.status == 400, (question, answer.text)
        assert answer.error['code'] == 'INVALID_ARGUMENT'
        assert answer.error['field'] == field
      continue
    answered += 1
    for answer in got:
      assert answer.status == 200, (question, answer.text)
      assert json_format.ParseDict(answer.json, type(expected)()) == expected
    names, values = csv.reader(io.StringIO(table.text, newline=''))
    assert names == [f.name for f in expected.DESCRIPTOR.fields]
    for name, value in zip(names, values):
      descriptor = expected.DESCRIPTOR.fields_by_name[name]
      if descriptor.containing_oneof and not expected.HasField(name):
        assert value == ''
      elif isinstance(getattr(expected, name), bool):
        assert value == str(getattr(expected, name)).lower()
      else:
        assert type(getattr(expected, name))(value) == getattr(expected, name)
  assert 100 < answered < 300


def test_the_load_is_that_of_the_rpc(client, ask, tensors):
  client.attention(*tensors)

  # An answer holds memory until it is sent, and the client can have it a little
  # earlier than the server gives the memory back.
  def idle():
    load = client.stub.GetServerInfo(client.pb.GetServerInfoRequest()).load
    return not (load.in_flight or load.reserved_bytes or load.busy_threads)
  poll_until(idle, 60, 'an idle server')
  answer = ask('/v1/server-info')
  expected = client.stub.GetServerInfo(client.pb.GetServerInfoRequest())
  got = json_format.ParseDict(answer.json, client.pb.GetServerInfoResponse())
  assert got.load.uptime.ToNanoseconds() < expected.load.uptime.ToNanoseconds()
  assert next(m.finished for m in got.load.methods
              if m.method == 'Attention') == 1
  # The call of GetServerInfo is not in its own answer either.
  for info in (got, expected):
    info.load.ClearField('uptime')
  assert got == expected
  assert ask('/v1/server-info?field=load.max_in_flight').text == '2'


def test_a_single_number_for_spreadsheets(ask, client):
  expected = client.stub.MemoryEstimate(
      client.pb.MemoryEstimateRequest(seq_len=4096, num_q_heads=32))
  answer = ask(f'{ESTIMATE}?seq_len=4096&num_q_heads=32&field=peak_bytes')
  assert answer.headers['Content-Type'].startswith('text/plain')
  assert int(answer.text) == expected.peak_bytes
  assert float(ask(f'{ESTIMATE}?seq_len=4096&num_q_heads=32&'
                   'field=reduction_ratio').text) == expected.reduction_ratio


def test_a_single_value_of_the_load(ask):
  assert re.fullmatch(r'\d+(\.\d+)?s', ask('/v1/server-info?field=load.uptime').text)
  for path, expected in (
      ('field=load.methods', 'a field that is not a list'),
      ('field=', 'a field of GetServerInfoResponse (version, '),
      ('field=isa&field=isa', 'one value')):
    answer = ask(f'/v1/server-info?{path}')
    assert answer.status == 400
    assert f'expected {expected}' in answer.error['message']


def test_health_and_the_page(ask):
  for path in ('/livez', '/readyz'):
    answer = ask(path)
    assert (answer.status, answer.text) == (200, 'ok\n')
  page = ask('/')
  assert page.headers['Content-Type'] == 'text/html; charset=utf-8'
  assert page.text.startswith('<!doctype html>')
  assert "default-src 'none'" in page.headers['Content-Security-Policy']
  assert ask('/', 'HEAD').text == ''


def test_the_page_is_the_file(ask):
  source = REPOSITORY / 'server' / 'admin' / 'planner.html'
  assert ask('/').text == source.read_text(encoding='utf-8')


@pytest.mark.parametrize('path,method,body,type_,status,code,field', [
    ('/nope', 'GET', None, None, 404, 'NOT_FOUND', ''),
    ('/v1/benchmark', 'POST', b'{}', 'application/json', 404, 'NOT_FOUND', ''),
    ('/livez', 'POST', b'{}', 'application/json', 405, 'UNIMPLEMENTED', ''),
    (ESTIMATE, 'DELETE', None, None, 405, 'UNIMPLEMENTED', ''),
    (ESTIMATE, 'OPTIONS', None, None, 405, 'UNIMPLEMENTED', ''),
    (f'{ESTIMATE}?seq_len=x', 'GET', None, None, 400, 'INVALID_ARGUMENT',
     'seq_len'),
    (f'{ESTIMATE}?seqlen=1', 'GET', None, None, 400, 'INVALID_ARGUMENT',
     'seqlen'),
    ('/v1/container-limit?seq_len=8&max_batch_for_budget_bytes=1', 'GET', None,
     None, 400, 'INVALID_ARGUMENT', 'max_batch_for_budget_bytes'),
    (f'{ESTIMATE}?%22%0d%0aX:%20y=1', 'GET', None, None, 400,
     'INVALID_ARGUMENT', '\\"\\r\\nX: y'),
    (ESTIMATE, 'GET', None, None, 400, 'INVALID_ARGUMENT', 'seq_len'),
    (ESTIMATE, 'POST', b'{', 'application/json', 400, 'INVALID_ARGUMENT', ''),
    (ESTIMATE, 'POST', b'{"seq_len": 1, "x": 1}', 'application/json', 400,
     'INVALID_ARGUMENT', 'x'),
    (ESTIMATE, 'POST', b'{"options": {"scale": "x"}}', 'application/json', 400,
     'INVALID_ARGUMENT', 'options.scale'),
    (ESTIMATE, 'POST', b'{}', 'text/plain', 415, 'INVALID_ARGUMENT', ''),
    (ESTIMATE, 'POST', b' ' * 65537, 'application/json', 413,
     'INVALID_ARGUMENT', ''),
    (f'{ESTIMATE}?seq_len=1', 'POST', b'{}', 'application/json', 400,
     'INVALID_ARGUMENT', 'seq_len'),
])
def test_errors_are_json(ask, path, method, body, type_, status, code, field):
  headers = {'Content_Type': type_} if type_ else {}
  answer = ask(path, method, body, **headers)
  assert answer.status == status, answer.text
  assert answer.error['code'] == code
  assert answer.error['field'] == field
  assert answer.error['message']


def test_an_unknown_parameter_lists_the_known_ones(ask, pb):
  message = ask(f'{ESTIMATE}?options.x=1').error['message']
  for field in pb.AttentionOptions.DESCRIPTOR.fields:
    assert field.name in message


def test_the_largest_body_is_taken(ask):
  body = b'{"seq_len": 8}'
  answer = ask(ESTIMATE, 'POST', body + b' ' * (65536 - len(body)),
               Content_Type='application/json')
  assert answer.status == 200


def test_another_site_is_refused(server):
  host, port = server.admin.split(':')
  connection = http.client.HTTPConnection(host, int(port), timeout=60)
  connection.request('GET', '/v1/server-info', headers={'Host': 'evil.example'})
  assert connection.getresponse().status == 403
  connection.close()


def test_two_hosts_are_refused(server):
  """The second one could be that of another site."""
  answer = exchange(server, b'GET /livez HTTP/1.1\r\nHost: localhost\r\n'
                            b'Host: evil.example\r\n\r\n')
  assert answer.startswith(b'HTTP/1.1 400 ')
  assert b'expected one header Host, got several' in answer


@pytest.mark.parametrize('listen', ['127.1:0', '0x7f.0.0.1:0', 'localhost:0'])
def test_another_site_is_refused_however_loopback_is_spelled(attnd, listen):
  with Server(attnd, admin=listen) as server:
    for host, status in [(b'evil.example', b'403'), (b'localhost', b'200'),
                         (server.admin.encode(), b'200')]:
      answer = exchange(
          server, b'GET /v1/server-info HTTP/1.1\r\nHost: ' + host + b'\r\n\r\n')
      assert answer.startswith(b'HTTP/1.1 ' + status + b' '), host


@pytest.mark.parametrize('content_type', [
    'multipart/form-data; boundary=b', 'application/x-www-form-urlencoded',
    'text/plain'])
def test_a_form_is_refused_by_its_type(ask, content_type):
  """These are the types that a web page of another site can send. A parser of
  forms would spend seconds on this body."""
  line = b'Content-Disposition: form-data' + b';filename="' * 800 + b'\r\n'
  body = (b'--b\r\n' + line + b'\r\nx\r\n') * 7 + b'--b--\r\n'
  assert 8192 < len(body) < 65536
  answer = ask(ESTIMATE, 'POST', body, Content_Type=content_type)
  assert answer.status == 415, answer.text
  assert answer.error['message'] == (
      'expected the header Content-Type: application/json')


@pytest.mark.parametrize('host,content_type,status', [
    (b'evil.example', b'application/json', b'403'),
    (b'localhost', b'multipart/form-data; boundary=b', b'415')])
def test_a_post_is_refused_before_its_body_is_read(server, host, content_type,
                                                   status):
  # The body never comes, so waiting for it would lead to another answer.
  answer = exchange(server, b'\r\n'.join([
      b'POST /v1/memory-estimate HTTP/1.1', b'Host: ' + host,
      b'Content-Type: ' + content_type, b'Content-Length: 100', b'', b'']))
  assert answer.startswith(b'HTTP/1.1 ' + status + b' ')


def test_a_post_to_a_path_without_one_needs_no_length(server):
  answer = exchange(server, b'POST /livez HTTP/1.1\r\nHost: localhost\r\n\r\n')
  assert answer.startswith(b'HTTP/1.1 405 ')


def test_a_body_that_does_not_come_is_late(server):
  answer = exchange(server, b'\r\n'.join([
      b'POST /v1/memory-estimate HTTP/1.1', b'Host: localhost',
      b'Content-Type: application/json', b'Content-Length: 5', b'', b'{}']))
  assert answer.startswith(b'HTTP/1.1 408 ')
  assert b'the request was not complete within 2 s' in answer


def test_garbage_is_answered_or_cut_off(server, rng):
  requests = [
      b'\r\n\r\n', b'GET', b'\x00' * 100, b'\x16\x03\x01\x00', b'GET / HTTP/9\r\n\r\n',
      b'GET / HTTP/1.1\r\nA: ' + b'x' * 30000,
      b'GET / HTTP/1.1\r\n' + b'A: b\r\n' * 5000 + b'\r\n',
      b'GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n',
      b'GET http://127.0.0.1/livez HTTP/1.1\r\nHost: localhost\r\n\r\n',
      b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n',
      b'POST /v1/memory-estimate HTTP/1.1\r\nHost: localhost\r\n'
      b'Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"seq_len": 1}']
  good = b'GET /v1/memory-estimate?seq_len=8 HTTP/1.1\r\nHost: localhost\r\n\r\n'
  for _ in range(300):
    flawed = bytearray(good)
    for _ in range(rng.integers(1, 4)):
      flawed[rng.integers(len(flawed))] = rng.integers(256)
    requests.append(bytes(flawed))
  for request in requests:
    with connect(server) as peer:
      answer = b''
      try:
        peer.sendall(request)
        peer.shutdown(socket.SHUT_WR)
        answer = b''.join(iter(lambda p=peer: p.recv(65536), b''))
      except ConnectionError:
        pass
    assert answer == b'' or answer.startswith(b'HTTP/1.1 '), request
    assert not answer.startswith(b'HTTP/1.1 500'), request
  assert exchange(server, good).startswith(b'HTTP/1.1 200 OK\r\n')


def test_requests_in_one_go_get_one_answer(server):
  request = b'GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n'
  answer = exchange(server, request * 20)
  assert answer.count(b'HTTP/1.1 200 OK') == 1
  assert b'Connection: close' in answer and answer.endswith(b'ok\n')


def test_clients_that_hold_the_port_hold_nothing_else(client, server):
  """While every place is taken by slow clients, gRPC answers. Afterwards, the
  port answers again, because it cuts them off."""
  files = f'/proc/{server.process.pid}/fd'
  before = len(os.listdir(files))
  health = health_pb2_grpc.HealthStub(client.channel)
  stop = threading.Event()

  def hold():
    """Sends a byte of a request now and then."""
    while not stop.is_set():
      try:
        with connect(server) as peer:
          for byte in b'GET /livez HTTP/1.1\r\n' + b'A: b\r\n' * 1000:
            peer.sendall(bytes([byte]))
            if stop.wait(0.05):
              return
      except OSError:
        pass

  holders = [threading.Thread(target=hold) for _ in range(60)]
  for holder in holders:
    holder.start()
  try:
    refused = poll_until(
        lambda: exchange(server, b'GET /livez HTTP/1.0\r\n\r\n').startswith(
            b'HTTP/1.1 503 '), 60, 'a full admin port')
    assert refused
    for _ in range(200):
      assert health.Check(health_pb2.HealthCheckRequest(), timeout=60).status \
          == health_pb2.HealthCheckResponse.SERVING
      assert client.stub.GetServerInfo(
          client.pb.GetServerInfoRequest(), timeout=60).load.in_flight == 0
    # 4 clients have a thread, 16 wait, and 9 are being refused.
    assert len(os.listdir(files)) <= before + 30
  finally:
    stop.set()
    for holder in holders:
      holder.join()
  poll_until(
      lambda: exchange(server, b'GET /livez HTTP/1.0\r\n\r\n').endswith(
          b'ok\n'), 60, 'an answer of the admin port')


def test_clients_that_send_nothing_keep_out_nobody(ask, server):
  silent = [connect(server) for _ in range(30)]
  try:
    for _ in range(30):
      assert ask('/livez').status == 200
  finally:
    for peer in silent:
      peer.close()


def test_full_slots_leave_the_port_free(ask, client, connect, server):
  own = connect(server.tcp)
  calls = [own.stub.SelfAttention.future(work.endless_request(own))
           for _ in range(2)]
  try:
    poll_until(lambda: ask('/v1/server-info?field=load.in_flight').text ==
               '2', 60, 'two calls in flight')
    poll_until(lambda: int(ask('/v1/server-info?field=load.busy_threads').text),
               60, 'a busy thread')
    assert int(ask('/v1/server-info?field=load.reserved_bytes').text) > 1 << 20
    assert ask(f'{ESTIMATE}?seq_len=8').status == 200
    assert ask('/readyz').status == 200
    assert work.refusal_of(client).reason == 'TOO_MANY_REQUESTS'
  finally:
    for call in calls:
      call.cancel()
  poll_until(lambda: ask('/v1/server-info?field=load.in_flight').text == '0',
             60, 'no calls in flight')


def get(address, path):
  """Returns (status, text)."""
  connection = http.client.HTTPConnection(address, timeout=60)
  try:
    connection.request('GET', path)
    response = connection.getresponse()
    return response.status, response.read().decode()
  finally:
    connection.close()


def test_it_answers_until_the_end_of_a_drain(attnd, stubs):
  with Server(attnd, '--drain-timeout=600', admin='127.0.0.1:0') as server, \
      open_channel(server.unix) as channel:
    own = Client(stubs, channel)
    call = own.stub.SelfAttention.future(work.endless_request(own))
    poll_until(lambda: get(server.admin, '/v1/server-info?field='
                           'load.in_flight')[1] == '1', 60, 'the call')
    address = server.admin
    server.signal()
    poll_until(lambda: get(address, '/readyz')[0] == 503, 60, 'the drain')
    assert 'draining' in get(address, '/readyz')[1]
    assert get(address, '/livez') == (200, 'ok\n')
    assert get(address, '/v1/server-info?field=load.in_flight') == (200, '1')
    assert get(address, f'{ESTIMATE}?seq_len=8&field=fits') == (200, 'true')
    call.cancel()
    assert server.wait(work.AT_ONCE_SECONDS) == 0
    with pytest.raises(OSError):
      get(address, '/livez')


def test_a_silent_client_delays_no_end(attnd):
  with Server(attnd, admin='127.0.0.1:0') as server:
    host, port = server.admin.split(':')
    with socket.create_connection((host, int(port))) as silent:
      silent.sendall(b'GET / HTTP/1.1\r\n')
      server.signal()
      assert server.wait(work.AT_ONCE_SECONDS) == 0


@pytest.mark.parametrize('admin,environment', [
    ('', None), (None, {'ATTND_ADMIN_LISTEN': ''})])
def test_an_empty_value_turns_it_off(attnd, admin, environment):
  with Server(attnd, admin=admin, environment=environment) as server:
    assert 'admin port' not in server.log()


def test_the_environment_sets_it(attnd):
  with Server(attnd, admin=None,
              environment={'ATTND_ADMIN_LISTEN': 'localhost:0'}) as server:
    assert server.admin.startswith('localhost:')
    assert get(server.admin, '/livez')[0] == 200


@pytest.mark.parametrize('address,why', [
    ('127.0.0.1', 'the port is missing'), ('127.0.0.1:x', 'not a number'),
    ('unix:/tmp/x', 'not a number'), ('192.0.2.1:1', 'not an address of this'),
    ('BUSY', 'it is in use')])
def test_a_wrong_address_is_an_error_at_start(attnd, server, address, why):
  done = subprocess.run(
      [str(attnd), '--listen=127.0.0.1:0',
       f'--admin-listen={address.replace("BUSY", server.admin)}'],
      capture_output=True, text=True, timeout=START_SECONDS, check=False,
      env=clean_environment())
  assert done.returncode == 1
  assert '--admin-listen: ' in done.stderr and why in done.stderr
  assert 'serves on' not in done.stderr


def test_the_document_shows_addresses_that_work(server):
  text = (REPOSITORY / 'docs' / 'admin.md').read_text(encoding='utf-8')
  addresses = re.findall(r'http://127\.0\.0\.1:50052(/[^\s\')]*)', text)
  assert len(addresses) >= 4
  for path in addresses:
    path = path.replace('"&A2&"', '4096').rstrip('"')
    status, said = get(server.admin, path)
    assert status == 200, (path, said)
  error = next(line for line in text.splitlines() if '{"error"' in line)
  assert get(server.admin, f'{ESTIMATE}?seq_len=x') == (400, f'{error[4:]}\n')
