"""./dev examples: builds the program of every language in examples/, runs each
on the real input with one server, over TCP and over a unix socket, and checks
what it prints.

The environment of all programs names a web proxy, which they must not use. If
a program retries calls, it is also run with a front server that refuses its
first calls. The exit code is 0 only if every program was built, ran and gave
the right answer.

For each language, this file has its tools and their lowest versions, the
commands of its README, and the place of its program.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

import grpc
import numpy as np

from support import minilm, reference
from support.server import Server, clean_environment
from support.stubs import REPOSITORY

EXAMPLES = REPOSITORY / 'examples'
BUILT = REPOSITORY / 'build' / 'examples'
BOUND = next(c.bound for c in minilm.CASES if c.title == 'plain')
FIELD = 'key.shape[1]'  # the wrong field in the refused call of every program
MAX_LINES = 150
REFUSALS = 2  # clients retry more often than this
COMMAND_SECONDS = 900


class Failure(Exception):
  """A language failed. The text says why."""


@dataclasses.dataclass(frozen=True)
class Tool:
  """A program that has to be installed, and its lowest version."""
  version_command: tuple
  least: tuple

  def check(self):
    name = self.version_command[0]
    if not shutil.which(name):
      raise Failure(f'{name} is not installed')
    said = subprocess.run(self.version_command, capture_output=True, text=True,
                          check=True)
    found = re.search(r'(\d+)\.(\d+)', said.stdout + said.stderr)
    version = tuple(int(part) for part in found.groups())
    if version < self.least:
      least = '.'.join(map(str, self.least))
      raise Failure(f'{name} {found[0]} is too old, {least} is needed')


@dataclasses.dataclass(frozen=True)
class Language:
  """One folder of examples/, or one page. The commands run in the folder."""
  name: str
  folder: str
  source: str  # the path below the folder of the program whose lines count
  tools: tuple
  build: tuple
  run: tuple  # followed by the address and the data folder
  shared: tuple = ()  # followed by the address and the shm socket
  streams: tuple = ()  # followed by the address
  retries: bool = False  # whether the program retries failed calls


VENV_PYTHON = str(BUILT / 'python' / 'bin' / 'python')
LOWEST_PYTHON = str(BUILT / 'python-lowest' / 'bin' / 'python')
# pip cannot install the lowest versions that a package allows; uv can.
UV = (VENV_PYTHON, '-m', 'uv', 'pip', 'install', '--quiet')
PYTEST = ('-B', '-m', 'pytest', '-q', '-p', 'no:cacheprovider')
GO = Tool(('go', 'version'), (1, 25))

LANGUAGES = (
    Language('python', 'python', 'main.py', (),
             ((sys.executable, '-m', 'venv', str(BUILT / 'python')),
              (VENV_PYTHON, '-m', 'pip', 'install', '--quiet', '.[test]', 'uv'),
              (VENV_PYTHON, *PYTEST, 'tests'),
              (sys.executable, '-m', 'venv', str(BUILT / 'python-lowest')),
              # Takes the lowest versions that have a wheel, because grpcio
              # takes a quarter of an hour to build from source.
              (*UV, f'--python={LOWEST_PYTHON}', '--resolution=lowest-direct',
               '--only-binary=grpcio', '--only-binary=ml-dtypes',
               '--only-binary=numpy', '.[test]'),
              (LOWEST_PYTHON, *PYTEST, 'tests')),
             (VENV_PYTHON, 'main.py'), (VENV_PYTHON, 'shared_memory.py'),
             retries=True),
    Language('cpp', 'cpp', 'main.cc', (Tool(('cmake', '--version'), (3, 25)),),
             (('cmake', '--install', '{build}', '--prefix',
               str(BUILT / 'prefix')),
              ('cmake', '-S', '.', '-B', str(BUILT / 'cpp'), '-G', 'Ninja',
               '-DCMAKE_BUILD_TYPE=Release',
               f'-DCMAKE_PREFIX_PATH={BUILT / "prefix"}'),
              ('cmake', '--build', str(BUILT / 'cpp'))),
             (str(BUILT / 'cpp' / 'attnd_example'),),
             (str(BUILT / 'cpp' / 'attnd_shared_memory'),),
             (str(BUILT / 'cpp' / 'attnd_streaming'),), retries=True),
    Language('go', 'go', 'main.go', (GO,),
             (('go', 'generate', './...'),
              ('go', 'build', '-o', f'{BUILT / "go"}/', '.')),
             (str(BUILT / 'go' / 'attnd-example'),), retries=True),
    Language('typescript', 'typescript', 'src/main.ts',
             (Tool(('node', '--version'), (20, 11)),
              Tool(('npm', '--version'), (7, 0))),
             (('npm', 'ci', '--silent'), ('npm', 'run', '--silent', 'build')),
             ('npm', 'start', '--silent', '--'), retries=True),
    Language('java', 'java', 'src/main/java/attnd/example/Main.java',
             (Tool(('java', '-version'), (17, 0)),
              Tool(('mvn', '--version'), (3, 8))),
             (('mvn', '-B', '-q', 'compile'),),
             ('mvn', '-B', '-q', 'exec:java'), retries=True),
    Language('rust', 'rust', 'src/main.rs',
             (Tool(('cargo', '--version'), (1, 88)),),
             (('cargo', 'build', '--locked', '--quiet'),),
             (str(BUILT / 'rust' / 'debug' / 'attnd-example'),)),
    Language('shell', '..', 'examples/grpcurl.md', (GO,), (), ()),
)


@dataclasses.dataclass
class Outcome:
  """A row of the table that is printed at the end."""
  language: Language
  worst_error: float = float('nan')
  p50_us: dict = dataclasses.field(default_factory=dict)  # by transport
  lines: int = 0
  build_seconds: float = 0
  problem: str = ''


def command_environment(build):
  return clean_environment({
      'ATTND_BUILD_DIR': str(build),
      'GOBIN': str(BUILT / 'bin'),
      'PATH': f'{BUILT / "bin"}{os.pathsep}{os.environ["PATH"]}',
  })


def execute(command, folder, environment, accept=(0,)):
  """Runs a command and returns what it wrote. If it fails, the error has all
  of that."""
  done = subprocess.run(command, cwd=folder, env=environment, text=True,
                        stdin=subprocess.DEVNULL, capture_output=True,
                        timeout=COMMAND_SECONDS, check=False)
  if done.returncode not in accept:
    raise Failure(f'{" ".join(command)}: exit code {done.returncode}\n'
                  f'{done.stdout}{done.stderr}')
  return done


def find(pattern, text):
  """Returns the groups of the pattern, and fails if the text does not contain
  it."""
  found = re.search(pattern, text)
  if not found:
    raise Failure(f'no {pattern!r} in what it said:\n{text}')
  return found.groups()


class WebProxy:
  """A context manager that acts as the web proxy that `environment` names. It
  records what clients ask for, and closes the connection."""

  def __enter__(self):
    self.requests = []
    self._listener = socket.create_server(('127.0.0.1', 0))
    address = f'127.0.0.1:{self._listener.getsockname()[1]}'
    names = ('http_proxy', 'https_proxy', 'all_proxy', 'grpc_proxy')
    self.environment = {name: f'http://{address}' for lower in names
                        for name in (lower, lower.upper())}
    host, port = address.split(':')
    self.environment['JAVA_TOOL_OPTIONS'] = (
        f'-Dhttps.proxyHost={host} -Dhttps.proxyPort={port} '
        '-Dhttp.nonProxyHosts=')
    self.environment['NO_PROXY'] = self.environment['no_proxy'] = ''
    self._thread = threading.Thread(target=self._serve)
    self._thread.start()
    return self

  def __exit__(self, *_):
    self._listener.shutdown(socket.SHUT_RDWR)
    self._thread.join()
    self._listener.close()

  def _serve(self):
    with contextlib.suppress(OSError):  # accept fails when the listener is shut
      while True:
        connection, _ = self._listener.accept()
        with connection, contextlib.suppress(OSError):
          connection.settimeout(5)
          self.requests.append(connection.recv(4096))


class Front(grpc.GenericRpcHandler):
  """A context manager for a server in front of the server at `target`. It
  refuses the first calls, as a server does while it restarts, and forwards the
  others and all health checks."""

  def __init__(self, target):
    self._target = target
    self._left = REFUSALS
    self._lock = threading.Lock()

  def __enter__(self):
    options = [('grpc.max_receive_message_length', -1),
               ('grpc.enable_http_proxy', 0)]
    self._channel = grpc.insecure_channel(self._target, options)
    self._server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(4), [self], options=options)
    self.address = f'127.0.0.1:{self._server.add_insecure_port("127.0.0.1:0")}'
    self._server.start()
    return self

  def __exit__(self, *_):
    self._server.stop(None).wait()
    self._channel.close()

  def service(self, handler_call_details):
    # On the wire, a call of one message looks like a stream of one message.
    method = handler_call_details.method
    call = self._channel.stream_stream(method)

    def pass_on(requests, context):
      if not method.startswith('/grpc.health.'):
        with self._lock:
          refused = self._left > 0
          self._left -= 1
        if refused:
          context.abort(grpc.StatusCode.UNAVAILABLE, 'restarting')
      timeout = context.time_remaining()
      # For a call without a deadline, such as a health check, grpcio says 292
      # billion years, but does not take so long a timeout.
      if timeout > 1e9:
        timeout = None
      try:
        yield from call(requests, timeout=timeout)
      except grpc.RpcError as error:
        context.set_trailing_metadata(error.trailing_metadata())
        context.abort(error.code(), error.details())

    return grpc.stream_stream_rpc_method_handler(pass_on)


class Runner:
  """Runs the programs of the languages with one server."""

  def __init__(self, build, server, shm_socket, proxy):
    self._build = build
    self._server = server
    self._shm_socket = shm_socket
    self._proxy = proxy
    self._build_environment = command_environment(build)
    self._environment = self._build_environment | proxy.environment
    # Go itself uses no proxy for loopback addresses and for the name localhost,
    # so calls to such a target would prove nothing.
    self._tcp = self._server.tcp.replace('127.0.0.1', 'LOCALHOST')

  def run(self, language):
    outcome = Outcome(language)
    folder = EXAMPLES / language.folder
    print(f'\n==> {language.name}', flush=True)
    try:
      for tool in language.tools:
        tool.check()
      start = time.monotonic()
      for command in language.build:
        command = [part.format(build=self._build) for part in command]
        print('  ' + ' '.join(command), flush=True)
        said = execute(command, folder, self._build_environment).stdout
        print(said, end='', flush=True)
      outcome.build_seconds = time.monotonic() - start
      if language.run:
        self._run_program(outcome, folder)
      else:
        self._run_page(outcome, folder)
      if self._proxy.requests:
        raise Failure(f'it asked the web proxy: {self._proxy.requests}')
    except (Failure, OSError, subprocess.SubprocessError) as error:
      outcome.problem = str(error)
      print(f'  FAILED: {error}', flush=True)
    return outcome

  def _run_program(self, outcome, folder):
    language = outcome.language
    outcome.lines = len((folder / language.source).read_text().splitlines())
    outcome.worst_error = 0
    addresses = {'tcp': self._tcp, 'unix': self._server.unix}
    for transport, address in addresses.items():
      outcome.p50_us[transport] = self._run_main(outcome, folder, address)
      if language.shared:
        said = execute((*language.shared, address, self._shm_socket),
                       folder, self._environment).stdout
        print(said, end='', flush=True)
        find('(same bits)', said)
      if language.streams:
        said = execute((*language.streams, address), folder,
                       self._environment).stdout
        print(said, end='', flush=True)
        find('(in chunks)', said)
    if language.retries:
      with Front(self._server.tcp) as front:
        self._run_main(outcome, folder, front.address)
    if outcome.lines > MAX_LINES:
      raise Failure(f'{outcome.lines} lines, allowed are {MAX_LINES}')

  def _run_main(self, outcome, folder, address):
    """Runs the program and returns the p50 of its smallest call in us."""
    arguments = (address, str(minilm.FOLDER))
    run = outcome.language.run
    command = (*run, f'-Dexec.args={" ".join(arguments)}'
              ) if run[0] == 'mvn' else run + arguments
    said = execute(command, folder, self._environment).stdout
    print(said, end='', flush=True)
    worst = float(find(r'worst error +(\S+),', said)[0])
    # This is also false for NaN.
    if not worst <= BOUND:
      raise Failure(f'{address}: off by {worst}, allowed is {BOUND}')
    outcome.worst_error = max(outcome.worst_error, worst)
    (field,) = find(r'refused .* in (\S+)\n', said)
    if field != FIELD:
      raise Failure(f'the refused call names {field}, not {FIELD}')
    return float(find(r'smallest call p50 (\S+) us', said)[0])

  def _run_page(self, outcome, folder):
    """Runs every command on the page, with this server's addresses."""
    page = (folder / outcome.language.source).read_text()
    install, call, refused, load, direct = re.findall(
        r'```sh\n(.*?)```', page, re.S)
    start = time.monotonic()
    self._shell(install, self._build_environment)
    outcome.build_seconds = time.monotonic() - start

    answer = json.loads(self._shell(call).stdout)['output']
    got = np.array(answer['values']['values']).reshape(
        [int(extent) for extent in answer['shape']])
    expected, _ = reference.attention(
        [[1, 0]], [[1, 0], [0, 1]], [[1, 2], [3, 4]])
    outcome.worst_error = float(np.max(np.abs(got - expected)))
    if not outcome.worst_error <= BOUND:
      raise Failure(f'off by {outcome.worst_error}, allowed is {BOUND}')

    # grpcurl's exit code is 64 plus the status code. 3 is INVALID_ARGUMENT.
    find(r'"reason": "(INVALID_FIELD)"[\s\S]*"field": "key\.shape\[1\]"',
         self._shell(refused, accept=(64 + 3,)).stderr)

    report = self._shell(load).stdout
    find(r'\[OK\] +(500) responses', report)
    outcome.p50_us['tcp'] = 1e3 * float(find(r'50 % in (\S+) ms', report)[0])

    find(r'"(version)":', self._shell(direct).stdout)

  def _shell(self, commands, environment=None, accept=(0,)):
    for written, here in (
        ('127.0.0.1:50051', self._server.tcp),
        ('attnd.example:50051', self._tcp),
        ('attnd.example', self._tcp.split(':')[0]),
        ('/run/attnd.sock', str(self._server.socket_path))):
      commands = commands.replace(written, here)
    print('  ' + commands.rstrip().replace('\n', '\n  '), flush=True)
    done = execute(['bash', '-euo', 'pipefail', '-c', commands], REPOSITORY,
                   environment or self._environment, accept)
    print(done.stdout, end='', flush=True)
    return done


def table(outcomes):
  row = '{:<12}{:>12}{:>10}{:>10}{:>7}{:>8}  {}'
  yield row.format('', 'worst error', 'p50 tcp', 'p50 unix', 'lines', 'built',
                   '')
  for o in outcomes:
    p50 = [f'{o.p50_us[t]:.0f} us' if t in o.p50_us else '-'
           for t in ('tcp', 'unix')]
    yield row.format(o.language.name, f'{o.worst_error:.2e}', *p50,
                     o.lines or '-', f'{o.build_seconds:.0f} s',
                     f'FAILED: {o.problem.splitlines()[0]}' if o.problem
                     else 'ok')


def main():
  names = [language.name for language in LANGUAGES]
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--build', type=pathlib.Path, required=True,
                      help='the build folder with server/ and client/')
  parser.add_argument('--only', default=','.join(names),
                      help='comma-separated; default: %(default)s')
  arguments = parser.parse_args()
  chosen = arguments.only.split(',')
  if unknown := set(chosen) - set(names):
    parser.error(f'--only knows {", ".join(names)}; got {", ".join(unknown)}')
  build = arguments.build.resolve()
  (BUILT / 'bin').mkdir(parents=True, exist_ok=True)
  with (tempfile.TemporaryDirectory(prefix='attnd-') as folder,
        Server(build / 'server' / 'attnd',
               f'--shm-socket={folder}/shm.sock') as server):
    print(f'attnd listens on {" and ".join(server.addresses)}')
    outcomes = []
    for language in (l for l in LANGUAGES if l.name in chosen):
      with WebProxy() as proxy:
        runner = Runner(build, server, f'{folder}/shm.sock', proxy)
        outcomes.append(runner.run(language))
  print('\nAttention of a real layer, the smallest call\'s median, seconds to '
        'build:\n')
  print('\n'.join(table(outcomes)))
  return 1 if any(o.problem for o in outcomes) else 0


if __name__ == '__main__':
  sys.exit(main())
