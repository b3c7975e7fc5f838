"""Tests TLS: that connections are encrypted, who may connect, that certificates
can be replaced in any way without a failed handshake or call, and that the
limits of connections hold for encrypted ones."""

import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.request

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from support import http2
from support.certificates import (Authority, client_context, handshake,
                                  served_name, tls_channel)
from support.client import Client
from support.raw_http2 import CONTINUATION, PREFACE, header_block
from support.server import (START_SECONDS, Server, clean_environment,
                            open_channel, poll_until)

# How often certificates are swapped under load. With 100, the test takes a
# minute.
SWAPS = int(os.environ.get('ATTND_TLS_SWAPS', '6'))
SWAP_SECONDS = 0.6
CLIENTS = 8


@pytest.fixture(scope='module')
def authority(tmp_path_factory):
  return Authority(tmp_path_factory.mktemp('authority'), 'authority')


@pytest.fixture(scope='module')
def pairs(authority):
  """Returns two certificates of the server, which have different names."""
  return [authority.issue('first'), authority.issue('second')]


class Files:
  """The files that a server reads, and how they are replaced."""

  def __init__(self, folder, pair):
    self.cert = folder / 'tls.crt'
    self.key = folder / 'tls.key'
    shutil.copyfile(pair.cert, self.cert)
    shutil.copyfile(pair.key, self.key)

  @property
  def flags(self):
    return [f'--tls-cert={self.cert}', f'--tls-key={self.key}']

  @staticmethod
  def rename_over(source, target):
    """Replaces a file in one step."""
    fresh = target.with_suffix('.new')
    shutil.copyfile(source, fresh)
    fresh.rename(target)

  def replace(self, pair):
    self.rename_over(pair.cert, self.cert)
    self.rename_over(pair.key, self.key)


@pytest.fixture
def files(tmp_path, pairs):
  return Files(tmp_path, pairs[0])


@pytest.fixture
def tls_server(attnd, files):
  with Server(attnd, *files.flags) as running:
    yield running


class Handshakes:
  """A context manager that makes handshakes without a pause, and requires that
  all succeed. names: the certificates that the server has shown."""

  def __init__(self, address, authority):
    self._address = address
    self._authority = authority
    self._over = threading.Event()
    self._failure = None
    self._thread = threading.Thread(target=self._run)
    self.count = 0
    self.names = set()

  def _run(self):
    while not self._over.is_set():
      try:
        self.names.add(served_name(self._address, self._authority))
        self.count += 1
      except OSError as error:
        self._failure = error
        return

  def __enter__(self):
    self._thread.start()
    self.wait_for_more()
    return self

  def __exit__(self, kind, *_):
    if kind is None:
      self.wait_for_more()
    self._over.set()
    self._thread.join()
    if kind is None:
      assert self._failure is None

  def wait_for_more(self):
    """Waits for some handshakes that begin now."""
    begin = self.count
    poll_until(lambda: self.count > begin + 3 or self._failure, 60,
               'handshakes')


def info(channel, stubs):
  client = Client(stubs, channel)
  return client.stub.GetServerInfo(client.pb.GetServerInfoRequest(), timeout=60)


def failures_in(server):
  return re.findall(r'\[error\] --tls-.*go on with the certificate in use',
                    server.log())


def wait_for_failure(server, count=1):
  poll_until(lambda: len(failures_in(server)) >= count, 60,
             'a line about the wrong file')
  assert len(failures_in(server)) == count


def test_answers_over_tls_equal_those_in_plain_text(tls_server, authority,
                                                    stubs, rng):
  sequence = rng.standard_normal((2, 256, 64), np.float32)
  answers = []
  for channel in (tls_channel(tls_server.tcp, authority),
                  open_channel(tls_server.unix)):
    with channel:
      client = Client(stubs, channel)
      answers.append(client.stub.SelfAttention(
          client.self_request(sequence), timeout=60).output.data)
  assert answers[0] == answers[1]


def test_tcp_needs_tls(tls_server, stubs):
  with open_channel(tls_server.tcp) as channel:
    with pytest.raises(grpc.RpcError) as caught:
      info(channel, stubs)
  assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_client_that_trusts_another_authority_does_not_connect(
    tls_server, stubs, tmp_path):
  with tls_channel(tls_server.tcp, Authority(tmp_path, 'stranger')) as channel:
    with pytest.raises(grpc.RpcError) as caught:
      info(channel, stubs)
  assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize('version,accepted', [
    (ssl.TLSVersion.TLSv1, False), (ssl.TLSVersion.TLSv1_1, False),
    (ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, True)])
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_old_versions_of_tls_are_refused(tls_server, authority, version,
                                         accepted):
  context = client_context(authority)
  # Otherwise the client itself would refuse the old versions.
  context.set_ciphers('ALL:@SECLEVEL=0')
  context.minimum_version = context.maximum_version = version
  if accepted:
    handshake(tls_server.tcp, context).close()
  else:
    with pytest.raises(OSError) as caught:
      handshake(tls_server.tcp, context)
    # It is the server that ends the handshake. gRPC sends no alert.
    assert (isinstance(caught.value, ConnectionResetError) or
            caught.value.reason == 'UNEXPECTED_EOF_WHILE_READING')


def test_mutual_tls_needs_a_certificate_of_the_authority(
    attnd, files, authority, stubs, tmp_path):
  stranger = Authority(tmp_path, 'stranger')
  with Server(attnd, *files.flags,
              f'--tls-client-ca={authority.cert}') as server:
    with tls_channel(server.tcp, authority,
                     authority.issue('alice')) as channel:
      assert info(channel, stubs).version
    for pair in (None, stranger.issue('mallory')):
      with tls_channel(server.tcp, authority, pair) as channel:
        with pytest.raises(grpc.RpcError) as caught:
          info(channel, stubs)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    # The mode of the file protects a unix socket.
    with open_channel(server.unix) as channel:
      assert info(channel, stubs).version


def failed_handshakes(server):
  text = urllib.request.urlopen(f'http://{server.admin}/metrics').read().decode()
  return int(re.search(r'^attnd_failed_tls_handshakes_total (\d+)', text,
                       re.MULTILINE)[1])


def test_failed_handshakes_are_counted_and_no_errors(attnd, files, authority,
                                                     stubs, tmp_path):
  stranger = Authority(tmp_path, 'stranger')
  with Server(attnd, *files.flags, f'--tls-client-ca={authority.cert}',
              admin='127.0.0.1:0') as server:
    host, port = server.tcp.split(':')
    # A good connection, a check whether the port is open, and plain text on
    # the unix socket are no failures.
    with tls_channel(server.tcp, authority,
                     authority.issue('alice')) as channel:
      assert info(channel, stubs).version
    socket.create_connection((host, int(port)), timeout=60).close()
    with open_channel(server.unix) as channel:
      assert info(channel, stubs).version
    peers = []

    def send(data):
      with socket.create_connection((host, int(port)), timeout=60) as plain:
        peers.append('{}:{}'.format(*plain.getsockname()))
        plain.sendall(data)
        while plain.recv(1 << 16):
          pass

    def refuse_the_server():
      with pytest.raises(ssl.SSLError):
        handshake(server.tcp, client_context(stranger))

    def send_a_foreign_certificate():
      context = client_context(authority, stranger.issue('mallory'))
      with pytest.raises(OSError):
        with handshake(server.tcp, context) as connection:
          connection.sendall(PREFACE)
          while connection.recv(1 << 16):
            pass
          raise ConnectionResetError  # closed without an alert

    for count, fail in enumerate((
        refuse_the_server, send_a_foreign_certificate,
        lambda: send(b'GET / HTTP/1.1\r\n\r\n'), lambda: send(PREFACE))):
      assert failed_handshakes(server) == count
      fail()
      poll_until(lambda: failed_handshakes(server) > count, 60,
                 'a failed handshake')
    assert failed_handshakes(server) == 4
    poll_until(lambda: sum(
        int(n) for n in re.findall(r'(\d+) TLS handshake\(s\) failed',
                                   server.log())) == 4, 60,
               'lines about the handshakes')
    assert f'the last one with ipv4:{peers[-1]}\n' in server.log()
    assert '[error]' not in server.log()


# --- replacing files -----------------------------------------------------------


def wait_for_name(server, authority, name):
  poll_until(lambda: served_name(server.tcp, authority) == name, 60,
             f'the certificate {name}')


def test_both_files_renamed_over(tls_server, files, pairs, authority):
  with Handshakes(tls_server.tcp, authority):
    files.replace(pairs[1])
    wait_for_name(tls_server, authority, 'second')


def test_a_link_is_switched_as_kubernetes_does(attnd, tmp_path, pairs,
                                               authority):
  for version, pair in zip(('v1', 'v2'), pairs):
    (tmp_path / version).mkdir()
    Files(tmp_path / version, pair)
  (tmp_path / '..data').symlink_to('v1')
  for name in ('tls.crt', 'tls.key'):
    (tmp_path / name).symlink_to(f'..data/{name}')
  with Server(attnd, f'--tls-cert={tmp_path}/tls.crt',
              f'--tls-key={tmp_path}/tls.key') as server, \
      Handshakes(server.tcp, authority):
    (tmp_path / '..data_tmp').symlink_to('v2')
    (tmp_path / '..data_tmp').rename(tmp_path / '..data')
    wait_for_name(server, authority, 'second')


def test_the_key_comes_before_the_certificate(tls_server, files, pairs,
                                              authority):
  with Handshakes(tls_server.tcp, authority) as handshakes:
    files.rename_over(pairs[1].key, files.key)
    wait_for_failure(tls_server)
    handshakes.wait_for_more()
    assert handshakes.names == {'first'}
    files.rename_over(pairs[1].cert, files.cert)
    wait_for_name(tls_server, authority, 'second')
  assert len(failures_in(tls_server)) == 1


def replace_certificate_alone(files, pair):
  files.rename_over(pair.cert, files.cert)


def truncate(files, pair):
  # In one step: the server would report an empty file as another wrong one.
  short = files.cert.with_suffix('.short')
  short.write_bytes(pair.cert.read_bytes()[:200])
  short.rename(files.cert)


def truncate_key(files, pair):
  files.key.write_bytes(b'')


def remove(files, pair):
  files.cert.unlink()


@pytest.mark.parametrize('spoil', [replace_certificate_alone, truncate,
                                   truncate_key, remove])
def test_a_wrong_file_changes_nothing(tls_server, files, pairs, authority,
                                      spoil):
  with Handshakes(tls_server.tcp, authority) as handshakes:
    spoil(files, pairs[1])
    wait_for_failure(tls_server)
    # The file is read twice a second, but reported once.
    time.sleep(1.2)
    handshakes.wait_for_more()
    assert handshakes.names == {'first'}
    assert len(failures_in(tls_server)) == 1
    files.replace(pairs[1])
    wait_for_name(tls_server, authority, 'second')


def test_an_open_connection_outlives_a_swap(attnd, files, pairs, authority,
                                            stubs):
  def peers(server):
    return re.findall(r'method=GetServerInfo code=OK peer=(\S+)', server.log())

  with Server(attnd, *files.flags, '--log-level=debug') as server, \
      tls_channel(server.tcp, authority) as channel:
    watch = health_pb2_grpc.HealthStub(channel).Watch(
        health_pb2.HealthCheckRequest())
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    info(channel, stubs)
    files.replace(pairs[1])
    wait_for_name(server, authority, 'second')
    info(channel, stubs)
    assert watch.is_active()
    used = poll_until(lambda: len(peers(server)) == 2 and peers(server), 60,
                      'two lines in the log')
    assert used[0] == used[1]
    watch.cancel()


def test_a_new_authority_of_clients_replaces_the_old_one(
    attnd, files, authority, stubs, tmp_path):
  other = Authority(tmp_path, 'other')
  trusted = tmp_path / 'clients.pem'
  shutil.copyfile(authority.cert, trusted)
  old, new = authority.issue('old'), other.issue('new')

  def may_connect(server, pair):
    with tls_channel(server.tcp, authority, pair) as channel:
      try:
        return bool(info(channel, stubs).version)
      except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        return False

  with Server(attnd, *files.flags, f'--tls-client-ca={trusted}') as server:
    assert may_connect(server, old) and not may_connect(server, new)
    Files.rename_over(other.cert, trusted)
    poll_until(lambda: may_connect(server, new), 60, 'the new authority')
    assert not may_connect(server, old)


def test_swaps_under_load_fail_no_call(attnd, files, pairs, authority, stubs):
  """Clients reconnect each second, and the certificate changes as often."""
  over = threading.Event()
  calls, failures = [0] * CLIENTS, []

  def call_until_over(number, server):
    with tls_channel(server.tcp, authority) as channel:
      client = Client(stubs, channel)
      request = client.self_request(np.ones((16, 16), np.float32))
      while not over.is_set():
        try:
          client.stub.SelfAttention(request, timeout=60)
          calls[number] += 1
        except grpc.RpcError as error:
          failures.append(f'{error.code()} {error.details()}')

  with Server(attnd, *files.flags, '--max-connection-age=1') as server:
    threads = [threading.Thread(target=call_until_over, args=(i, server))
               for i in range(CLIENTS)]
    for thread in threads:
      thread.start()
    try:
      poll_until(lambda: min(calls) > 0, 60, 'calls')
      for swap in range(SWAPS):
        files.replace(pairs[(swap + 1) % 2])
        time.sleep(SWAP_SECONDS)
    finally:
      over.set()
      for thread in threads:
        thread.join()
    print(f'{sum(calls)} calls, {SWAPS} swaps, {len(failures)} failures')
    assert not failures
    assert 'new connections use the changed certificate' in server.log()


# --- what is wrong at start ----------------------------------------------------


def start_error(attnd, *flags):
  """Returns what attnd writes when it does not start."""
  done = subprocess.run(
      [str(attnd), '--listen=127.0.0.1:0', '--admin-listen=', *flags],
      env=clean_environment(), capture_output=True, text=True, check=False,
      timeout=START_SECONDS)
  assert done.returncode == 1
  return done.stderr


@pytest.mark.parametrize('flag', ['--tls-cert', '--tls-key', '--tls-client-ca'])
def test_a_file_that_cannot_be_read_is_named(attnd, files, authority, flag):
  paths = {'--tls-cert': files.cert, '--tls-key': files.key,
           '--tls-client-ca': authority.cert, flag: '/no/such/file'}
  error = start_error(attnd, *(f'{name}={path}'
                               for name, path in paths.items()))
  assert (f'{flag}: /no/such/file: cannot read it: No such file or directory'
          in error)


def test_a_key_of_another_certificate_is_an_error(attnd, pairs):
  error = start_error(attnd, f'--tls-cert={pairs[0].cert}',
                      f'--tls-key={pairs[1].key}')
  assert (f'--tls-key: {pairs[1].key}: the private key does not belong'
          in error)


# --- limits of connections -----------------------------------------------------


def send_until_ended(connection, data, times):
  """Sends `data` again and again. Returns whether the server ended the
  connection."""
  try:
    for _ in range(times):
      connection.sendall(data)
    # The server has ended it if there is an end after what it has sent.
    while connection.recv(1 << 16):
      pass
    return True
  except TimeoutError:
    return False
  except OSError:
    return True


ENDLESS_HEADERS = (
    http2.frame(http2.HEADERS, header_block('GetServerInfo'), 0, 1),
    http2.frame(CONTINUATION, http2.header('a', 'x' * 8000), 0, 1), 40, 'a block of headers of more than 64 KiB')
PINGS = (b'', http2.frame(http2.PING, bytes(8)), 4000,
         'too many PING or SETTINGS frames')


@pytest.mark.parametrize('first,again,times,reason',
                         [ENDLESS_HEADERS, PINGS], ids=['headers', 'pings'])
def test_limits_hold_for_encrypted_connections(tls_server, authority, stubs,
                                               first, again, times, reason):
  with handshake(tls_server.tcp, client_context(authority)) as connection:
    connection.sendall(PREFACE + http2.frame(http2.SETTINGS) + first)
    assert send_until_ended(connection, again, times)
  poll_until(lambda: reason in tls_server.log(), 60, 'the reason in the log')
  with tls_channel(tls_server.tcp, authority) as channel:
    assert info(channel, stubs).version


def test_a_handshake_that_does_not_end_is_ended(attnd, files, authority):
  with Server(attnd, *files.flags, '--stream-idle-timeout=1') as server:
    host, port = server.tcp.rsplit(':', 1)
    with socket.create_connection((host, int(port)), timeout=60) as silent:
      assert silent.recv(1) == b''
    # The handshake is complete, but no frame follows.
    with handshake(server.tcp, client_context(authority)) as connection:
      while connection.recv(1 << 16):
        pass
    poll_until(lambda: 'sent no HTTP/2 frame in time' in server.log(), 60,
               'the reason in the log')


# --- warnings ------------------------------------------------------------------


@pytest.mark.parametrize('tls,ca,warning', [
    (False, False, 'and nothing is encrypted'),
    (True, False, 'set --token-file or --tls-client-ca'), (True, True, None)])
def test_an_exposed_address_is_a_warning(attnd, files, authority, tls, ca,
                                         warning):
  flags = [*(files.flags if tls else []),
           *([f'--tls-client-ca={authority.cert}'] if ca else [])]
  with Server(attnd, *flags, listen='0.0.0.0:0') as server:
    # The line that comes after the warning.
    poll_until(lambda: 'serves on 0.0.0.0:' in server.log(), 60, 'the log')
    lines = [line for line in server.log().splitlines() if '[warning]' in line]
  assert len(lines) == (warning is not None)
  assert warning is None or warning in lines[0]
  checked = subprocess.run(
      [attnd, '--check-config', '--listen=0.0.0.0:0', *flags], text=True,
      capture_output=True, check=True)
  assert checked.stderr.count('attnd: warning: --listen: ') == len(lines)
  assert (warning or '') in checked.stderr


def test_the_log_says_what_clients_need(attnd, files, authority, tmp_path):
  tokens = tmp_path / 'tokens'
  tokens.write_text(f'alice {"1" * 64} user\nbob {"2" * 64} admin\n')
  with Server(attnd, *files.flags, f'--tls-client-ca={authority.cert}',
              f'--token-file={tokens}') as server:
    poll_until(lambda: 'serves on' in server.log(), 60, 'the log')
    assert ('connections over TCP need TLS, and a certificate of the client' in
            server.log())
    assert f'calls need a token: {tokens} has 2 tokens' in server.log()
