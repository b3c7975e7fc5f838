"""A real Envoy as a child process, with the configuration that is deployed."""

import json
import pathlib
import sys
import urllib.request

import yaml

from support.program import Program
from support.server import poll_until
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


class Envoy(Program):
  """A context manager: Envoy in front of servers, all of which it has found
  healthy."""

  def __init__(self, addresses, **changes):
    super().__init__('Envoy')
    self._addresses, self._changes = addresses, changes
    self.address = self._admin = None

  def command(self):
    config = self.folder / 'envoy.json'
    config.write_text(json.dumps(configuration(self._addresses,
                                                **self._changes)))
    return [str(pathlib.Path(sys.executable).parent / 'envoy'),
            '--config-path', str(config), '--disable-hot-restart',
            '--concurrency', '2', '--log-level', 'warning',
            '--admin-address-path', str(self.folder / 'admin')]

  def started(self):
    admin = self.folder / 'admin'
    self._admin = self.poll(lambda: admin.exists() and
                            admin.read_text().strip(), 'start of Envoy')
    self.wait_for_healthy(len(self._addresses))
    self.address = self.poll(self._listens, 'its listener')

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
