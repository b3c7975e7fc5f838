"""Sets options by flag, by environment variable and in a file, and checks that
they take precedence in this order. Also tests --check-config and
--print-config."""

import os
import subprocess
import tomllib

import pytest

from support.client import Client
from support.server import Server, clean_environment, open_channel


def info(server, stubs):
  with open_channel(server.tcp) as channel:
    client = Client(stubs, channel)
    return client.stub.GetServerInfo(client.pb.GetServerInfoRequest())


@pytest.fixture
def config_file(tmp_path):
  path = tmp_path / 'attnd.conf'
  path.write_text('threads=3\nmax-message-bytes=3000000\n'
                  'memory-budget-bytes=300000000\n')
  return path


def test_file_sets(attnd, stubs, config_file):
  with Server(attnd, f'--config={config_file}') as server:
    got = info(server, stubs)
  assert got.threads == 3
  assert got.max_receive_message_bytes == 3000000
  assert got.max_send_message_bytes == 3000000
  assert got.memory_budget_bytes == 300000000


def test_environment_over_file(attnd, stubs, config_file):
  environment = {'ATTND_THREADS': '2', 'ATTND_MAX_MESSAGE_BYTES': '2000000',
                 'ATTND_CONFIG': str(config_file)}
  with Server(attnd, environment=environment) as server:
    got = info(server, stubs)
  assert got.threads == 2
  assert got.max_receive_message_bytes == 2000000
  assert got.memory_budget_bytes == 300000000  # the file's, beside them


def test_flag_over_environment_over_file(attnd, stubs, config_file):
  environment = {'ATTND_THREADS': '2', 'ATTND_MAX_MESSAGE_BYTES': '2000000'}
  with Server(attnd, f'--config={config_file}', '--threads=1',
              environment=environment) as server:
    got = info(server, stubs)
  assert got.threads == 1
  assert got.max_receive_message_bytes == 2000000
  assert got.memory_budget_bytes == 300000000


@pytest.mark.parametrize('flag,named', [
    ('--threads=-1', 'threads'), ('--threads=many', 'threads'),
    ('--max-message-bytes=0', 'max-message-bytes'),
    ('--memory-budget-bytes=-5', 'memory-budget-bytes'),
    ('--no-such-flag=1', 'no-such-flag'),
    ('--config=/no/such/file', '/no/such/file')])
def test_a_wrong_setting_is_an_error_at_start(attnd, flag, named):
  done = subprocess.run(
      [str(attnd), '--listen=127.0.0.1:0', '--admin-listen=', flag],
      capture_output=True, text=True, timeout=60, check=False, env=clean_environment())
  assert done.returncode > 0
  assert named in done.stderr + done.stdout


def test_a_wrong_key_in_the_file_is_an_error_at_start(attnd, tmp_path):
  path = tmp_path / 'attnd.conf'
  path.write_text('thread=3\n')
  done = subprocess.run(
      [str(attnd), '--listen=127.0.0.1:0', '--admin-listen=',
       f'--config={path}'],
      capture_output=True, text=True, timeout=60, check=False,
      env=clean_environment())
  assert done.returncode > 0
  assert 'thread' in done.stderr + done.stdout


def ask(attnd, *flags, environment=None):
  """Runs attnd with flags that make it answer and end."""
  return subprocess.run([str(attnd), *flags], capture_output=True, text=True,
                        timeout=60, check=False,
                        env=clean_environment(environment))


def test_a_right_configuration_is_ok(attnd, config_file, tmp_path):
  before = sorted(os.listdir(tmp_path))
  done = ask(attnd, '--check-config', f'--config={config_file}',
             f'--listen=127.0.0.1:0,unix:{tmp_path}/attnd.sock',
             f'--shm-socket={tmp_path}/shm.sock', '--threads=1',
             f'--address-file={tmp_path}/addresses')
  assert (done.returncode, done.stdout, done.stderr) == (0, 'ok\n', '')
  assert sorted(os.listdir(tmp_path)) == before


def test_what_a_server_runs_with_is_ok(attnd):
  """So a change can be checked before the server is restarted with it."""
  with Server(attnd, admin='127.0.0.1:0') as server:
    done = ask(attnd, '--check-config', f'--listen={",".join(server.addresses)}',
               f'--admin-listen={server.admin}',
               f'--address-file={server.folder}/addresses')
    assert (done.returncode, done.stdout, done.stderr) == (0, 'ok\n', '')
    with open_channel(server.unix) as channel:
      assert channel.unary_unary('/grpc.health.v1.Health/Check')(b'') == b'\x08\x01'


def test_every_error_is_printed(attnd, tmp_path):
  path = tmp_path / 'attnd.conf'
  path.write_text('thread=3\nmax-in-flight=0\n')
  done = ask(attnd, '--check-config', f'--config={path}', '--log-level=loud',
             environment={'ATTND_THREADS': 'two'})
  assert (done.returncode, done.stdout) == (1, '')
  assert all(line.startswith('attnd: --') for line in done.stderr.splitlines())
  for part in ('thread is not an option', '--max-in-flight: ',
               '--log-level: ', '--threads: '):
    assert part in done.stderr
  done = ask(attnd, '--check-config', '--listen=192.0.2.1:1,no-port',
             '--address-file=/dev/null', '--max-connections=1048576')
  assert (done.returncode, done.stdout) == (1, '')
  for part in ('192.0.2.1:1: it is not an address', 'got "no-port"',
               '--address-file: /dev/null', '--max-connections: expected at most'):
    assert part in done.stderr


def test_what_a_server_would_accept_is_a_warning(attnd):
  done = ask(attnd, '--check-config', '--listen=127.0.0.1:0',
             '--memory-budget-bytes=1000000000000000',
             environment={'ATTND_PORT': '50052'})
  assert (done.returncode, done.stdout) == (0, 'ok\n')
  lines = done.stderr.splitlines()
  assert [line.split(' ')[:3] for line in lines] == [
      ['attnd:', 'warning:', '--memory-budget-bytes:'],
      ['attnd:', 'warning:', 'ATTND_PORT']]


def test_the_printed_file_gives_the_same_options(attnd, config_file, tmp_path):
  first = ask(attnd, '--print-config', f'--config={config_file}',
              '--threads=1', '--listen=127.0.0.1:0,unix:/tmp/attnd.sock',
              environment={'ATTND_MAX_MESSAGE_BYTES': '2000000'})
  assert (first.returncode, first.stderr) == (0, '')
  assert '# flag --threads\nthreads = 1\n' in first.stdout
  assert ('# variable ATTND_MAX_MESSAGE_BYTES\nmax-message-bytes = 2000000\n'
          in first.stdout)
  assert f'# file {config_file}\nmemory-budget-bytes = 300000000\n' in first.stdout
  assert '# default\nmax-in-flight = 256\n' in first.stdout
  printed = tmp_path / 'printed.toml'
  printed.write_text(first.stdout)
  second = ask(attnd, '--print-config', f'--config={printed}')
  values = lambda text: [line for line in text.splitlines()
                         if not line.startswith('#')]
  assert values(second.stdout) == values(first.stdout)
  parsed = tomllib.loads(first.stdout)
  assert parsed['listen'] == ['127.0.0.1:0', 'unix:/tmp/attnd.sock']
  assert (parsed['threads'], parsed['log-level']) == (1, 'info')
