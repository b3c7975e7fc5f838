"""Runs real servers, a real Envoy and attnctl with the deployment files that use TLS
and tokens."""

import hashlib
import subprocess
import urllib.request

import pytest
import yaml

from support.certificates import Authority
from support.envoy import Envoy
from support.server import Server, clean_environment
from support.stubs import REPOSITORY

TOKEN = 'c0ffee' * 10
UNAVAILABLE = 4  # exit codes of attnctl
CALL_FAILED = 1


@pytest.fixture(scope='module')
def secrets(tmp_path_factory):
  """Returns a folder with the files that docs/deployment.md makes."""
  folder = tmp_path_factory.mktemp('secrets')
  authority = Authority(folder, 'ca')
  authority.issue('server', 'DNS:attnd,IP:127.0.0.1')
  authority.issue('client', 'DNS:client')
  digest = hashlib.sha256(TOKEN.encode()).hexdigest()
  (folder / 'tokens').write_text(f'alice {digest} user\n')
  (folder / 'token').write_text(f'{TOKEN}\n')
  return folder


@pytest.fixture
def attnctl(build_dir):

  def run(*arguments, **variables):
    """Runs attnctl with these variables of the environment."""
    return subprocess.run(
        [str(build_dir / 'client' / 'attnctl'), *arguments],
        env=clean_environment(variables), capture_output=True, text=True,
        timeout=300, check=False)

  return run


def at(folder, environment, place):
  """Returns the variables with paths in `folder` instead of `place`."""
  return {name: value.replace(place, str(folder))
          for name, value in environment.items()}


def test_compose(attnd, attnctl, secrets):
  services = yaml.safe_load(
      (REPOSITORY / 'docker' / 'compose.tls.yaml').read_text())['services']
  ours, theirs = (at(secrets, services[name]['environment'], '/run/secrets')
                  for name in ('attnd', 'application'))
  with Server(attnd, environment=ours) as server:
    health = services['attnd']['healthcheck']['test']
    assert health[:2] == ['CMD', '/usr/bin/attnctl']
    assert attnctl(*health[2:], ATTND_SERVER=server.unix).returncode == 0

    # The certificate has to be for the name that the file calls.
    scheme, _, target = theirs['ATTND_SERVER'].partition(':///')
    assert scheme == 'dns'
    theirs['ATTNCTL_TLS_SERVER_NAME'] = target.partition(':')[0]
    theirs['ATTND_SERVER'] = server.tcp
    command = services['application']['command']
    entered = attnctl(*command, **theirs)
    assert entered.returncode == 0, entered.stderr
    for missing, code in (('ATTNCTL_TOKEN_FILE', CALL_FAILED),
                          ('ATTNCTL_TLS_CA', UNAVAILABLE)):
      less = {k: v for k, v in theirs.items() if k != missing}
      assert attnctl(*command, **less).returncode == code, missing
    no_certificate = {k: v for k, v in theirs.items()
                      if k not in ('ATTNCTL_TLS_CERT', 'ATTNCTL_TLS_KEY')}
    refused = attnctl(*command, **no_certificate)
    assert refused.returncode == UNAVAILABLE
    assert 'client certificate' in refused.stderr


def test_kubernetes(attnd, attnctl, secrets, tmp_path):
  patch = yaml.safe_load((REPOSITORY / 'deploy' / 'kubernetes' / 'service-tls' /
                          'deployment.yaml').read_text())
  (container,) = patch['spec']['template']['spec']['containers']
  environment = {e['name']: e['value'] for e in container['env']}
  assert environment['ATTND_ADMIN_LISTEN'].startswith('0.0.0.0:')
  environment['ATTND_ADMIN_LISTEN'] = '127.0.0.1:0'
  # What `kubectl create secret tls` and `generic` make of the files.
  for source, target in (('server.pem', 'tls/tls.crt'),
                         ('server.key', 'tls/tls.key'),
                         ('tokens', 'tokens/tokens')):
    path = tmp_path / target
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((secrets / source).read_bytes())
  environment = at(tmp_path, environment, '/etc/attnd')
  with Server(attnd, environment=environment, admin=None) as server:
    for probe in ('startupProbe', 'readinessProbe', 'livenessProbe'):
      path = container[probe]['httpGet']['path']
      with urllib.request.urlopen(f'http://{server.admin}{path}',
                                  timeout=60) as answer:
        assert answer.status == 200
    assert attnctl('health', ATTND_SERVER=server.unix).returncode == 0
    access = [f'--server={server.tcp}', f'--tls-ca={secrets}/ca.pem']
    entered = attnctl('top', '--once', '--interval=0.1', *access,
                      f'--token-file={secrets}/token')
    assert entered.returncode == 0, entered.stderr
    refused = attnctl('info', *access)
    assert refused.returncode == CALL_FAILED
    assert '--token-file=FILE sends one' in refused.stderr
    benchmark = attnctl('bench', '--num-vectors=8', *access,
                        f'--token-file={secrets}/token')
    assert benchmark.returncode == CALL_FAILED
    assert 'PERMISSION_DENIED' in benchmark.stderr


def test_envoy(attnd, attnctl, secrets):
  flags = [f'--tls-cert={secrets}/server.pem', f'--tls-key={secrets}/server.key',
           f'--tls-client-ca={secrets}/ca.pem', f'--token-file={secrets}/tokens']
  with Server(attnd, *flags) as server, \
      Envoy([server.tcp], tls=secrets) as envoy:
    access = [f'--server={envoy.address}', f'--tls-ca={secrets}/ca.pem']
    token = f'--token-file={secrets}/token'
    # health does not retry; estimate does, and watches the health.
    for command in (['info'], ['health'], ['estimate', '--seq-len=8']):
      entered = attnctl(*command, *access, token)
      assert entered.returncode == 0, entered.stderr
    assert attnctl('info', *access).returncode == CALL_FAILED
    plain = attnctl('info', f'--server={envoy.address}')
    assert plain.returncode == UNAVAILABLE
    # Nobody without a certificate can go around Envoy.
    direct = attnctl('info', f'--server={server.tcp}', access[1], token)
    assert direct.returncode == UNAVAILABLE
    assert 'client certificate' in direct.stderr
