"""A real Prometheus as a child process, and promtool."""

import json
import os
import pathlib
import subprocess
import urllib.error
import urllib.parse
import urllib.request

from support.program import Program
from support.stubs import REPOSITORY

# ./dev setup unpacks Debian's package here. It is not installed, because
# installing it would start a server.
PROGRAMS = pathlib.Path(os.environ.get(
    'ATTND_PROMETHEUS', REPOSITORY / 'build' / 'prometheus' / 'usr' / 'bin'))
RULES = REPOSITORY / 'deploy' / 'prometheus' / 'attnd-rules.yml'


def promtool(*arguments, stdin=None):
  """Returns the result of the command with its output as text."""
  return subprocess.run([str(PROGRAMS / 'promtool'), *map(str, arguments)],
                        input=stdin, capture_output=True, text=True,
                        check=False, timeout=120)


class Prometheus(Program):
  """A context manager: Prometheus scrapes `target` ten times a second, and
  evaluates the rules of deploy/prometheus."""

  def __init__(self, target, labels=None):
    super().__init__('Prometheus')
    self._config = {
        'global': {'scrape_interval': '100ms', 'evaluation_interval': '200ms'},
        'rule_files': [str(RULES)],
        'scrape_configs': [{
            'job_name': 'attnd',
            'static_configs': [{'targets': [target], 'labels': labels or {}}]}]}
    self._port = None

  def command(self):
    config = self.folder / 'prometheus.yml'
    config.write_text(json.dumps(self._config))  # JSON is YAML, too
    return [str(PROGRAMS / 'prometheus'), f'--config.file={config}',
            f'--storage.tsdb.path={self.folder / "data"}',
            '--web.listen-address=127.0.0.1:0', '--log.format=json']

  def started(self):
    self._port = self.poll(self._listens, 'start of Prometheus')
    self.poll(lambda: self.query('up == 1'), 'the first scrape')

  def _listens(self):
    """Returns the port. Prometheus logs only the port that was asked for, so
    this looks for the socket."""
    sockets = set()
    for entry in pathlib.Path(f'/proc/{self.process.pid}/fd').iterdir():
      try:
        sockets.add(os.readlink(entry))
      except FileNotFoundError:
        pass
    for line in pathlib.Path('/proc/net/tcp').read_text().splitlines()[1:]:
      fields = line.split()
      if fields[3] == '0A' and f'socket:[{fields[9]}]' in sockets:
        return int(fields[1].split(':')[1], 16)
    return None

  def query(self, expression):
    """Returns the samples of the expression, as of now."""
    query = urllib.parse.urlencode({'query': expression})
    try:
      with urllib.request.urlopen(
          f'http://127.0.0.1:{self._port}/api/v1/query?{query}',
          timeout=60) as answer:
        return json.load(answer)['data']['result']
    except urllib.error.HTTPError as error:
      with error:
        if error.code == 503:  # it still starts
          return []
        raise AssertionError(f'{expression}: {error.read().decode()}') from None
