"""A real Envoy as a child process, with the configuration that is deployed."""

import json
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

import yaml

from support.server import START_SECONDS, STOP_SECONDS, poll_until
from support.stubs import REPOSITORY

CONFIG = REPOSITORY / 'deploy' / 'envoy' / 'envoy.yaml'
TLS_CONFIG = CONFIG.with_name('envoy-tls.yaml')
TLS_FOLDER = '/etc/envoy/tls'  # where TLS_CONFIG expects certificates


def _endpoint(address):
  host, port = address.rsplit(':', 1)
  return {'endpoint': {'address': {'socket_address': {
      'address': host, 'port_value': int(port)}}}}


def configuration(addresses, request_timeout=None, ping_interval=None,
                  tls=None):
  """Returns the deployed configuration, with addresses for the test and free
  ports.

  request_timeout, ping_interval: replace those that are deployed.
  tls: a folder of certificates, for the configuration with TLS.
  """
  if tls:
    config = yaml.safe_load(
        TLS_CONFIG.read_text().replace(TLS_FOLDER, str(tls)))
  else:
    config = yaml.safe_load(CONFIG.read_text())
  resources = config['static_resources']
  (listener,), (cluster,) = resources['listeners'], resources['clusters']
  for place in (config['admin'], listener):
    place['address']['socket_address'].update(
        address='127.0.0.1', port_value=0)
  if request_timeout is not None:
    (chain,) = listener['filter_chains']
    (manager,) = chain['filters']
    assert 'request_timeout' in manager['typed_config']
    manager['typed_config']['request_timeout'] = request_timeout
  if ping_interval is not None:
    (options,) = cluster['typed_extension_protocol_options'].values()
    http2 = options['explicit_http_config']['http2_protocol_options']
    assert 'interval' in http2['connection_keepalive']
    http2['connection_keepalive']['interval'] = ping_interval
  (endpoints,) = cluster['load_assignment']['endpoints']
  endpoints['lb_endpoints'] = [_endpoint(address) for address in addresses]
  return config


class Envoy:
  """A context manager: Envoy in front of servers, all of which it has found
  healthy."""

  def __init__(self, addresses, **changes):
    self._addresses, self._changes = addresses, changes
    self._folder = tempfile.TemporaryDirectory(prefix='envoy-')
    self.folder = pathlib.Path(self._folder.name)
    self.process = self.address = self._admin = None

  def __enter__(self):
    config = self.folder / 'envoy.json'
    config.write_text(json.dumps(configuration(self._addresses,
                                                **self._changes)))
    with open(self.folder / 'log', 'ab') as log:
      self.process = subprocess.Popen(
          [str(pathlib.Path(sys.executable).parent / 'envoy'),
           '--config-path', str(config), '--disable-hot-restart',
           '--concurrency', '2', '--log-level', 'warning',
           '--admin-address-path', str(self.folder / 'admin')],
          stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
      poll_until(self._has_admin, START_SECONDS, 'start of Envoy')
      self.wait_for_healthy(len(self._addresses))
      self.address = poll_until(self._listens, START_SECONDS, 'its listener')
    except BaseException:
      self._end()
      raise
    return self

  def __exit__(self, *_):
    self._end()
    self._folder.cleanup()

  def _end(self):
    self.process.terminate()
    try:
      self.process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
      self.process.kill()
      self.process.wait()

  def _has_admin(self):
    if self.process.poll() is not None:
      raise RuntimeError(f'Envoy exited with {self.process.returncode}:\n' +
                         (self.folder / 'log').read_text(errors='replace'))
    path = self.folder / 'admin'
    if path.exists():
      self._admin = path.read_text().strip()
    return self._admin

  def _get(self, what):
    with urllib.request.urlopen(f'http://{self._admin}/{what}',
                                timeout=60) as answer:
      return json.load(answer)

  def _listens(self):
    statuses = self._get('listeners?format=json').get('listener_statuses')
    if not statuses:
      return None
    at = statuses[0]['local_address']['socket_address']
    return f'{at["address"]}:{at["port_value"]}'

  def stat(self, name):
    """Returns a counter or gauge of the cluster."""
    full = f'cluster.attnd.{name}'
    stats = self._get(f'stats?format=json&filter=^{full}$')['stats']
    (value,) = [s['value'] for s in stats if s.get('name') == full]
    return value

  def host_stats(self, address):
    """Returns the counters and gauges of one server."""
    (cluster,) = [c for c in self._get('clusters?format=json')
                  ['cluster_statuses'] if c['name'] == 'attnd']
    for host in cluster['host_statuses']:
      at = host['address']['socket_address']
      if f'{at["address"]}:{at["port_value"]}' == address:
        return {s['name']: int(s.get('value', 0)) for s in host['stats']}
    raise KeyError(address)

  def wait_for_healthy(self, servers):
    poll_until(lambda: self.stat('membership_healthy') == servers, 120,
               f'{servers} healthy servers')
