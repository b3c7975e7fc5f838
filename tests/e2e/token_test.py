"""Tests tokens: that no method but health checks is open without one, that
wrong ones are refused at the headers of a call, that the list can change, and
that nothing shows a secret."""

import hashlib
import os
import re
import secrets
import signal
import threading
import urllib.request

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from support.certificates import Authority, tls_channel
from support.client import Client, Refusal
from support.relay import Relay
from support.server import Server, open_channel, poll_until

HEALTH = 'grpc.health.v1.Health'
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
USER, ADMIN = secrets.token_hex(32), secrets.token_hex(32)
MIB = 1 << 20


def line(name, token, role='user'):
  return f'{name} {hashlib.sha256(token.encode()).hexdigest()} {role}\n'


def bearer(token):
  return (('authorization', f'Bearer {token}'),)


@pytest.fixture(scope='module')
def authority(tmp_path_factory):
  return Authority(tmp_path_factory.mktemp('authority'), 'authority')


@pytest.fixture(scope='module')
def token_file(tmp_path_factory):
  path = tmp_path_factory.mktemp('tokens') / 'tokens'
  path.write_text(line('alice', USER) + line('root', ADMIN, 'admin'))
  return path


@pytest.fixture(scope='module')
def plain_server(attnd, token_file):
  with Server(attnd, f'--token-file={token_file}',
              '--log-level=debug') as running:
    yield running


@pytest.fixture(scope='module')
def tls_server(attnd, token_file, authority):
  pair = authority.issue('server')
  with Server(attnd, f'--token-file={token_file}', f'--tls-cert={pair.cert}',
              f'--tls-key={pair.key}', '--log-level=debug') as running:
    yield running


@pytest.fixture(params=['tcp', 'unix', 'tls'])
def channel(request, plain_server, tls_server, authority):
  """A connection in plain text over each kind of socket, and over TLS."""
  made = (tls_channel(tls_server.tcp, authority) if request.param == 'tls' else
          open_channel(getattr(plain_server, request.param)))
  with made:
    yield made


def call(channel, method, metadata=(), message=b''):
  """Calls a method of any kind, and returns the error, or None if the server
  sent a first answer or OK."""
  stream = channel.stream_stream(method)(iter([message]), metadata=metadata,
                                         timeout=60)
  try:
    next(stream, None)
    return None
  except grpc.RpcError as error:
    return error
  finally:
    stream.cancel()


def reflected_methods(channel, metadata):
  """Returns the path of every method that the server says it has."""
  stub = reflection_pb2_grpc.ServerReflectionStub(channel)

  def ask(**request):
    (answer,) = stub.ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(**request)]),
        metadata=metadata, timeout=60)
    return answer

  methods = []
  for service in ask(list_services='').list_services_response.service:
    answer = ask(file_containing_symbol=service.name)
    for data in answer.file_descriptor_response.file_descriptor_proto:
      file = descriptor_pb2.FileDescriptorProto.FromString(data)
      for each in file.service:
        if f'{file.package}.{each.name}' == service.name:
          methods += [f'/{service.name}/{method.name}'
                      for method in each.method]
  return methods


def test_no_method_but_health_is_open_without_a_token(channel):
  methods = reflected_methods(channel, bearer(USER))
  assert '/attnd.v1.AttentionService/Attention' in methods
  assert ('/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo'
          in methods)
  for method in methods:
    error = call(channel, method)
    if method.startswith(f'/{HEALTH}/'):
      assert error is None, method
    else:
      assert error.code() == UNAUTHENTICATED, method
      assert 'expected metadata with the value "Bearer TOKEN"' in error.details()


@pytest.mark.parametrize('method', [
    '/no.such.Service/Method', '/attnd.v1.AttentionService/NoSuchMethod', '/',
    f'/{HEALTH}', f'/{HEALTH}X/Check', f'//{HEALTH}/Check',
    f'/x/{HEALTH}/Check', f'/{HEALTH.lower()}/Check',
    f'/attnd.v1.AttentionService/GetServerInfo?/{HEALTH}/'])
def test_unknown_methods_need_a_token_too(channel, method):
  assert call(channel, method).code() == UNAUTHENTICATED
  assert (call(channel, method, bearer(USER)).code() ==
          grpc.StatusCode.UNIMPLEMENTED)


WRONG = {
    'empty': [('authorization', '')],
    'no scheme': [('authorization', USER)],
    'no token': [('authorization', 'Bearer')],
    'empty token': [('authorization', 'Bearer ')],
    'another scheme': [('authorization', f'Basic {USER}')],
    'wrong': bearer(secrets.token_hex(32)),
    'shorter': bearer(USER[:-1]),
    'longer': bearer(USER + '0'),
    'capitals': bearer(USER.upper()),
    'two in one': bearer(f'{USER} {ADMIN}'),
    'two': [*bearer(USER), *bearer(ADMIN)],
    'the same twice': [*bearer(USER), *bearer(USER)],
    'a hash': bearer(hashlib.sha256(USER.encode()).hexdigest()),
    'another key': [('x-authorization', f'Bearer {USER}')],
    '4 KiB': bearer('x' * 4097),
}


@pytest.mark.parametrize('metadata', WRONG.values(), ids=WRONG)
def test_wrong_tokens_are_refused(channel, stubs, metadata):
  assert call(channel, '/attnd.v1.AttentionService/GetServerInfo',
              tuple(metadata)).code() == UNAUTHENTICATED
  # The connection goes on.
  client = Client(stubs, channel)
  assert client.stub.GetServerInfo(client.pb.GetServerInfoRequest(),
                                   metadata=bearer(USER), timeout=60).version


def test_a_token_of_64_kib_is_refused(channel, stubs):
  """gRPC refuses headers of more than 16 KiB itself, and attnd ends a
  connection with more than 64 KiB."""
  error = call(channel, '/attnd.v1.AttentionService/GetServerInfo',
               bearer('x' * (64 << 10)))
  assert error.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED,
                          grpc.StatusCode.UNAVAILABLE)


def test_every_form_of_the_scheme_is_understood(channel, stubs):
  client = Client(stubs, channel)
  for scheme in ('Bearer', 'bearer', 'BEARER'):
    assert client.stub.GetServerInfo(
        client.pb.GetServerInfoRequest(), timeout=60,
        metadata=(('authorization', f'{scheme} {USER}'),)).version


def test_benchmark_needs_the_role_admin(channel, stubs, refused):
  client = Client(stubs, channel)
  request = client.pb.BenchmarkRequest(num_vectors=16)

  def run(token):
    return list(client.stub.Benchmark(request, metadata=bearer(token),
                                      timeout=600))

  refusal = refused(lambda: run(USER))
  assert refusal.code == grpc.StatusCode.PERMISSION_DENIED
  assert refusal.reason == 'ADMIN_ROLE_REQUIRED'
  assert 'role admin' in refusal.message
  assert run(ADMIN)


@pytest.mark.parametrize('tls', [False, True], ids=['plain', 'tls'])
def test_a_large_call_is_refused_at_its_headers(attnd, token_file, authority,
                                                stubs, tls):
  pair = authority.issue('server')
  flags = [f'--tls-cert={pair.cert}', f'--tls-key={pair.key}'] if tls else []
  with Server(attnd, f'--token-file={token_file}', *flags) as server, \
      Relay(server.tcp) as relay, \
      (tls_channel(relay.address, authority) if tls else
       open_channel(relay.address)) as channel:
    method = '/attnd.v1.AttentionService/Attention'
    assert call(channel, method).code() == UNAUTHENTICATED
    peak = peak_bytes(server)
    error = call(channel, method, message=bytes(255 * MIB))
    assert error.code() == UNAUTHENTICATED
    grown, sent = peak_bytes(server) - peak, relay.bytes_from_clients
    print(f'the server grew by {grown} bytes, and was sent {sent} bytes')
    # Sanitizers take memory of their own for each byte that the server touches.
    assert grown < (16 if os.environ.get('ATTND_SANITIZE') else 1) * MIB
    # What the client can send before it has read the refusal.
    assert sent < 16 * MIB


def peak_bytes(server):
  """Returns the most memory that the server has had so far."""
  with open(f'/proc/{server.process.pid}/status', encoding='ascii') as status:
    (kib,) = [row.split()[1] for row in status if row.startswith('VmHWM:')]
  return int(kib) << 10


def accepts(channel, token):
  return call(channel, '/attnd.v1.AttentionService/GetServerInfo',
              bearer(token)) is None


def test_the_line_of_a_request_says_who_called(attnd, token_file):
  with Server(attnd, f'--token-file={token_file}',
              '--log-level=debug') as server, open_channel(server.tcp) as channel:
    for token in (USER, ADMIN):
      assert accepts(channel, token)
    poll_until(lambda: server.log().count('method=GetServerInfo code=OK') == 2,
               60, 'two lines')
    # gRPC handles calls in several threads, so the first line can come last.
    assert sorted(re.findall(r'caller=(\S+) peer=', server.log())) == [
        'alice', 'root']


def metric(server, name):
  with urllib.request.urlopen(f'http://{server.admin}/metrics') as answer:
    (value,) = re.findall(rf'^{name} (.*)$', answer.read().decode(), re.M)
  return float(value)


def test_the_list_changes_while_the_server_runs(attnd, tmp_path):
  path = tmp_path / 'tokens'
  path.write_text(line('alice', USER))
  new = secrets.token_hex(32)
  with Server(attnd, f'--token-file={path}', admin='127.0.0.1:0') as server, \
      open_channel(server.tcp) as channel:
    def replace(text):
      (tmp_path / 'new').write_text(text)
      (tmp_path / 'new').rename(path)

    assert accepts(channel, USER) and not accepts(channel, new)
    # A caller changes its token without a call that is refused.
    replace(line('alice', USER) + line('alice', new))
    poll_until(lambda: accepts(channel, new), 60, 'the new token')
    assert accepts(channel, USER)
    replace(line('alice', new))
    poll_until(lambda: not accepts(channel, USER), 60, 'the end of the old one')
    assert accepts(channel, new)
    # A damaged list changes nothing.
    replace(line('alice', USER) + 'alice\n')
    poll_until(lambda: '[error] --token-file' in server.log(), 60,
               'a line about the damaged file')
    assert f'--token-file: {path}: line 2: expected three words' in server.log()
    assert metric(server, 'attnd_token_file_refused') == 1
    assert accepts(channel, new) and not accepts(channel, USER)
    path.unlink()
    poll_until(lambda: server.log().count('the tokens in use stay valid') == 2,
               60, 'a line about the missing file')
    assert accepts(channel, new)
    replace(line('alice', USER))
    poll_until(lambda: accepts(channel, USER), 60, 'the repaired file')
    assert metric(server, 'attnd_token_file_refused') == 0
    assert metric(server, 'attnd_token_reload_failures_total') == 2
    # The number of calls that are refused, and no others.
    before = metric(server, 'attnd_unauthenticated_calls_total')
    assert accepts(channel, USER) and not accepts(channel, new)
    assert metric(server, 'attnd_unauthenticated_calls_total') == before + 1
    server.signal(signal.SIGHUP)
    poll_until(lambda: '(SIGHUP): reading the files' in server.log(), 60,
               'a line about the signal')
    assert accepts(channel, USER)


def test_nothing_shows_a_token_or_a_key(attnd, tmp_path, authority, stubs):
  pair = authority.issue('secretive')
  path = tmp_path / 'tokens'
  path.write_text(line('alice', USER))
  wrong = secrets.token_hex(32)
  key = pair.key.read_text().splitlines()[1]
  texts = []
  with Server(attnd, f'--token-file={path}', f'--tls-cert={pair.cert}',
              f'--tls-key={pair.key}', '--log-level=debug',
              admin='127.0.0.1:0') as server, \
      tls_channel(server.tcp, authority) as channel:
    assert accepts(channel, USER)
    client = Client(stubs, channel)
    for token in (wrong, USER, f'{wrong} {USER}', USER + '\x7f'):
      with pytest.raises(grpc.RpcError) as caught:
        list(client.stub.Benchmark(client.pb.BenchmarkRequest(num_vectors=1),
                                   metadata=bearer(token), timeout=60))
      texts.append(repr(Refusal(caught.value)) + repr(caught.value))
    # Somebody writes the token itself into the file.
    path.write_text(f'alice {USER} user\n{USER}\n')
    poll_until(lambda: 'the tokens in use stay valid' in server.log(), 60,
               'a line about the wrong file')
    with open(pair.key, 'a', encoding='ascii') as file:
      file.write('x')
    pair.key.write_text(pair.key.read_text().replace('\n', '!', 2))
    poll_until(lambda: 'go on with the certificate in use' in server.log(), 60,
               'a line about the wrong key')
    line_of_call = 'method=Benchmark code=PERMISSION_DENIED'
    poll_until(lambda: server.log().count(line_of_call) == 1, 60,
               'the line of the refused call')
    texts.append(server.log())
  for text in texts:
    for secret in (USER, wrong, key):
      assert secret not in text


def test_many_calls_with_and_without_tokens(channel, stubs):
  """Refused calls do not disturb those of others on the same connection."""
  client = Client(stubs, channel)
  outcomes = []

  def run(token):
    for _ in range(200):
      outcomes.append((token, accepts(channel, token)))

  threads = [threading.Thread(target=run, args=(token,))
             for token in (USER, 'wrong', ADMIN, '')]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(outcomes) == 800
  assert all(accepted == (token in (USER, ADMIN))
             for token, accepted in outcomes)
  assert client.stub.GetServerInfo(client.pb.GetServerInfoRequest(),
                                   metadata=bearer(USER), timeout=60).version


def test_health_needs_no_token(channel):
  stub = health_pb2_grpc.HealthStub(channel)
  assert (stub.Check(health_pb2.HealthCheckRequest(), timeout=60).status ==
          health_pb2.HealthCheckResponse.SERVING)
