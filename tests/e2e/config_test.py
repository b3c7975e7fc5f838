"""Sets every option by flag, by environment variable and in a file, and checks
that they take precedence in this order."""

import subprocess

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
