"""Both clients with a server that uses TLS or asks for tokens. The server is a small
one in this process, so that tests choose its certificates."""

import asyncio
import concurrent.futures
import contextlib
import socket
import subprocess
import threading

import attnd
from attnd import access
from attnd.v1 import attention_pb2 as pb, attention_pb2_grpc as pb_grpc
import grpc
import pytest

from support.certificates import Authority


class Service(pb_grpc.AttentionServiceServicer):
  """Answers calls that have the right token, if there is one."""

  def __init__(self):
    self.token = None
    self.seen = []

  def _check(self, context):
    sent = dict(context.invocation_metadata()).get('authorization')
    self.seen.append(sent)
    if self.token and sent != f'Bearer {self.token}':
      context.abort(grpc.StatusCode.UNAUTHENTICATED, 'who are you?')

  def GetServerInfo(self, request, context):
    self._check(context)
    return pb.GetServerInfoResponse(version='9.8.7', features=['stream'])

  def Benchmark(self, request, context):
    self._check(context)
    if self.token:
      context.abort(grpc.StatusCode.PERMISSION_DENIED, 'this is for admins')
    yield pb.BenchmarkResponse(result=pb.BenchmarkResult(num_queries=3))


@contextlib.contextmanager
def serving(pair=None, client_ca=None):
  """Yields (address, service)."""
  service = Service()
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    server = grpc.server(pool)
    pb_grpc.add_AttentionServiceServicer_to_server(service, server)
    if pair:
      port = server.add_secure_port('127.0.0.1:0', grpc.ssl_server_credentials(
          [(pair.key.read_bytes(), pair.cert.read_bytes())],
          client_ca and client_ca.cert.read_bytes(), client_ca is not None))
    else:
      port = server.add_insecure_port('127.0.0.1:0')
    server.start()
    try:
      yield f'127.0.0.1:{port}', service
    finally:
      server.stop(None).wait()


@pytest.fixture(scope='module')
def authority(tmp_path_factory):
  return Authority(tmp_path_factory.mktemp('authority'), 'authority')


@pytest.fixture(scope='module')
def pair(authority):
  return authority.issue('server')


@pytest.fixture(params=['sync', 'asyncio'])
def calling(request):
  """calling(address, method, arguments, ...) returns the result of a method of one
  of the clients. The other arguments are for the client."""

  def sync(address, method, arguments=None, **settings):
    with attnd.Client(address, **settings) as client:
      return getattr(client, method)(**arguments or {})

  async def by_asyncio(address, method, arguments=None, **settings):
    async with attnd.AsyncClient(address, **settings) as client:
      return await getattr(client, method)(**arguments or {})

  if request.param == 'sync':
    return sync
  return lambda *args, **settings: asyncio.run(by_asyncio(*args, **settings))


def test_tls(calling, authority, pair):
  with serving(pair) as (address, _):
    for ca in (authority.cert, str(authority.cert), authority.cert.read_bytes()):
      info = calling(address, 'server_info', tls=attnd.TLS(ca=ca))
      assert info.version == '9.8.7'


def test_mutual_tls(calling, authority, pair, tmp_path):
  own = authority.issue('client')
  with serving(pair, client_ca=authority) as (address, _):
    tls = attnd.TLS(ca=authority.cert, cert=own.cert, key=own.key)
    assert calling(address, 'server_info', tls=tls).version == '9.8.7'
    once = {'timeout': 5, 'retry': attnd.RetryPolicy(max_attempts=1)}
    other = Authority(tmp_path, 'other').issue('client')
    for wrong, hint in (
        (None, 'may require TLS'),
        (attnd.TLS(ca=authority.cert), 'may require a client certificate'),
        (attnd.TLS(ca=authority.cert, cert=other.cert, key=other.key),
         'may not accept the client certificate'),
        (attnd.TLS(ca=authority.cert, cert=own.cert, key=other.key),
         'check that tls.key is the key of tls.cert')):
      with pytest.raises(attnd.Unavailable, match=hint):
        calling(address, 'server_info', tls=wrong or False, **once)


def test_a_server_without_tls_is_named(calling, authority):
  with serving() as (address, _):
    with pytest.raises(attnd.Unavailable, match='does not seem to use TLS'):
      calling(address, 'server_info', tls=attnd.TLS(ca=authority.cert), timeout=5,
              retry=attnd.RetryPolicy(max_attempts=1))


def test_a_port_of_http1_is_named(calling):
  over = threading.Event()

  def serve(listener):
    while not over.is_set():
      connection, _ = listener.accept()
      with connection:
        connection.recv(4096)
        connection.sendall(b'HTTP/1.1 400 Bad Request\r\n\r\n')

  with socket.create_server(('127.0.0.1', 0)) as listener:
    thread = threading.Thread(target=serve, args=(listener,))
    thread.start()
    try:
      with pytest.raises(attnd.Unavailable, match='admin port is .--admin-listen'):
        calling('127.0.0.1:%d' % listener.getsockname()[1], 'server_info', timeout=5,
                retry=attnd.RetryPolicy(max_attempts=1))
    finally:
      over.set()
      socket.create_connection(listener.getsockname()).close()
      thread.join()


def expired(authority, folder):
  """Returns a certificate that is not valid any more."""
  key, request = folder / 'expired.key', folder / 'expired.request'
  cert, extensions = folder / 'expired.pem', folder / 'expired.extensions'
  extensions.write_text('subjectAltName=IP:127.0.0.1\n')
  run = lambda *args: subprocess.run(
      ['openssl', *map(str, args)], check=True, capture_output=True)
  run('req', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes',
      '-subj', '/CN=expired', '-keyout', key, '-out', request)
  has_dates = b'-not_after' in subprocess.run(
      ['openssl', 'x509', '-help'], check=False, capture_output=True).stderr
  end = (['-not_before', '20200101000000Z', '-not_after', '20200102000000Z']
         if has_dates else ['-days', -1])  # the first from OpenSSL 3.4 on
  run('x509', '-req', '-in', request, '-CA', authority.cert, '-CAkey',
      authority.cert.with_suffix('.key'), '-CAcreateserial', *end, '-extfile',
      extensions, '-out', cert)
  return type(authority.issue('unused'))(cert, key)


@pytest.mark.parametrize('fault', ['authority', 'gRPC\'s own', 'expired', 'name'])
def test_wrong_certificates_are_refused(calling, authority, pair, tmp_path, fault):
  tls = attnd.TLS(ca=authority.cert)
  if fault == 'authority':
    tls = attnd.TLS(ca=Authority(tmp_path, 'other').cert)
  elif fault == 'expired':
    pair = expired(authority, tmp_path)
  elif fault == 'name':
    pair = authority.issue('elsewhere', 'DNS:elsewhere')
  else:
    tls = True
  settings = {'timeout': 10, 'retry': attnd.RetryPolicy(max_attempts=1)}
  with serving(pair) as (address, service):
    hint = {'name': 'set tls.server_name', "gRPC's own": 'tls.ca names another'}
    with pytest.raises(attnd.Unavailable,
                       match=hint.get(fault, 'an authority in tls.ca, or it is not')):
      calling(address, 'server_info', tls=tls, **settings)
    assert not service.seen
    if fault == 'name':
      tls = attnd.TLS(ca=authority.cert, server_name='elsewhere')
      assert calling(address, 'server_info', tls=tls).version == '9.8.7'


def test_tokens(calling):
  with serving() as (address, service):
    assert calling(address, 'server_info').version
    assert service.seen == [None]
    service.token = 'secret'
    for token in ('secret', lambda: 'secret'):
      assert calling(address, 'server_info', token=token).version
    with pytest.raises(attnd.PermissionDenied):
      calling(address, 'benchmark', {'num_vectors': 3}, token='secret')
    for token in (None, 'other'):
      before = len(service.seen)
      with pytest.raises(attnd.Unauthenticated) as caught:
        calling(address, 'server_info', token=token)
      assert len(service.seen) == before + 1  # there were no retries
      assert 'other' not in str(caught.value)


def test_streams_send_the_token(calling):
  with serving() as (address, service):
    result = calling(address, 'benchmark', {'num_vectors': 3}, token='abc')
    assert result.num_queries == 3
    assert service.seen == ['Bearer abc']


def test_a_new_token_takes_effect():
  tokens = ['old']
  with serving() as (address, service):
    service.token = 'old'
    with attnd.Client(address, token=lambda: tokens[-1]) as client:
      client.server_info()
      service.token = 'new'
      with pytest.raises(attnd.Unauthenticated):
        client.server_info()
      tokens.append('new')
      client.server_info()


@pytest.mark.parametrize('client', [attnd.Client, attnd.AsyncClient])
def test_tokens_go_in_plain_text_only_to_this_host(client):
  with pytest.raises(ValueError, match='allow_plaintext_token=True') as caught:
    client('attnd:50051', token='secret')
  assert 'secret' not in str(caught.value)
  client('attnd:50051', token='secret', allow_plaintext_token=True)
  client('attnd:50051', token='secret', tls=True)
  client('unix:/run/attnd.sock', token='secret')


@pytest.mark.parametrize('token,got', [
    ('secret\n', 'a line break around it: call strip'), ('', 'nothing'),
    ('se cret', 'other characters')])
def test_a_wrong_token_is_not_repeated(token, got):
  with pytest.raises(ValueError, match=got) as caught:
    attnd.Client(token=token)
  assert 'cret' not in str(caught.value)


@pytest.mark.parametrize('target', [
    'unix:/run/attnd.sock', '127.0.0.1:1', '127.1.2.3', 'LocalHost:1', '[::1]:1',
    'dns:///localhost:1', 'dns://8.8.8.8/localhost:1', '::1',
    'ipv4:127.0.0.1:1,127.0.0.2:2', 'ipv6:[::1]:1'
])
def test_targets_on_this_host(target):
  assert access.stays_on_this_host(target)


@pytest.mark.parametrize('target', [
    'attnd:1', '10.0.0.1:1', 'dns:///attnd:1', '', 'dns:', 'xds:///attnd',
    'ipv4:127.0.0.1:1,10.0.0.1:1', 'ipv6:[::]:1', '127.0.0.1.example:1',
    'localhost.example:1', 'dns://localhost/attnd:1', '2001:db8::1', '0.0.0.0:1'
])
def test_targets_on_other_hosts(target):
  assert not access.stays_on_this_host(target)


@pytest.mark.parametrize('token', ['', 'secret\n', 'secret 1', 'secret\u00e4',
                                   's' * 4097, 7, lambda: 'secret\n'])
def test_tokens_that_no_header_can_hold(token):
  with pytest.raises((TypeError, ValueError), match='^token: expected') as caught:
    with attnd.Client('unix:/none', token=token) as client:
      client.server_info()
  assert 'secret' not in str(caught.value)


def test_wrong_files_are_named(authority, tmp_path):
  garbage = tmp_path / 'garbage'
  garbage.write_text('no PEM')
  own = authority.issue('own')
  with pytest.raises(FileNotFoundError, match='none'):
    attnd.Client(tls=attnd.TLS(ca=tmp_path / 'none'))
  with pytest.raises(ValueError, match=r'^tls\.ca: .*garbage'):
    attnd.Client(tls=attnd.TLS(ca=garbage))
  with pytest.raises(ValueError, match=r'^tls\.key: '):
    attnd.Client(tls=attnd.TLS(cert=own.cert, key=own.cert))
  with pytest.raises(ValueError, match='only cert'):
    attnd.TLS(cert=own.cert)
  assert 'KEY' not in repr(attnd.TLS(cert=b'', key=own.key.read_bytes()))
