"""A real attnd as a child process, which tests start and stop."""

import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import tempfile
import time

import grpc

# Time limits, in seconds. They are long, because builds with sanitizers and
# busy machines are slow. Tests check the condition repeatedly, so they do not
# wait that long.
START_SECONDS = 120
STOP_SECONDS = 120
POLL_SECONDS = 0.02


class ServerError(Exception):
  """The server did not start, or did not stop as it should."""


def poll_until(condition, seconds, what):
  """Returns the first true value of condition(), for a limited time."""
  limit = time.monotonic() + seconds
  while True:
    value = condition()
    if value:
      return value
    if time.monotonic() > limit:
      raise TimeoutError(f'{what}: not within {seconds} s')
    time.sleep(POLL_SECONDS)


def free_port():
  """Returns a port of 127.0.0.1 that no other program gets by chance while the
  server that uses it is down."""
  for _ in range(1000):
    port = random.randrange(20000, 30000)
    with socket.socket() as probe:
      try:
        probe.bind(('127.0.0.1', port))
        return port
      except OSError:
        pass
  raise OSError('no free port')


def clean_environment(extra=None):
  """Returns the environment without settings of attnd, plus `extra`."""
  environment = {
      name: value for name, value in os.environ.items()
      if not name.startswith('ATTND_')
  }
  environment.update(extra or {})
  return environment


class Server:
  """A context manager: attnd on a free TCP port and on a unix socket.

  Leaving the context stops the server, and raises an error unless it exits
  with 0.

  admin: the value of --admin-listen. By default there is no admin port; with
  None, the environment or the default decides.
  prefix: a command that runs the command of the server in its own process.
  stderr: a descriptor that gets what would otherwise go to log().
  """

  def __init__(self, binary, *flags, environment=None, listen=None, admin='',
               prefix=(), stderr=None):
    self._folder = tempfile.TemporaryDirectory(prefix='attnd-')
    self.folder = pathlib.Path(self._folder.name)
    self.socket_path = self.folder / 'attnd.sock'
    self.listen = listen or f'127.0.0.1:0,unix:{self.socket_path}'
    self._address_file = self.folder / 'addresses'
    self._log = self.folder / 'log'
    self._stderr = stderr
    self._command = [
        *prefix, str(binary), f'--listen={self.listen}',
        *([] if admin is None else [f'--admin-listen={admin}']),
        f'--address-file={self._address_file}', *flags
    ]
    self._environment = clean_environment(environment)
    self.process = None
    self.addresses = []

  def __enter__(self):
    self.start()
    return self

  def __exit__(self, kind, error, _):
    if error is not None:
      error.add_note(f'the end of the log of attnd:\n{self.log()[-4000:]}')
    try:
      self.stop(check=kind is None)
    finally:
      self._folder.cleanup()

  def start(self):
    """Launches the server and waits until it says that it is ready."""
    self.launch()
    try:
      self.addresses = poll_until(self._ready, START_SECONDS, 'start of attnd')
    except BaseException:
      self.kill()
      raise

  def launch(self):
    """Launches the server without waiting."""
    self._address_file.unlink(missing_ok=True)
    with open(self._log, 'ab') as log:
      self.process = subprocess.Popen(
          self._command, env=self._environment,
          stderr=log if self._stderr is None else self._stderr,
          stdin=subprocess.DEVNULL)

  def _ready(self):
    if self.process.poll() is not None:
      raise ServerError(f'attnd exited with {self.process.returncode} at '
                        f'start:\n{self.log()}')
    if not self._address_file.exists():
      return None
    return self._address_file.read_text().split()

  def log(self):
    return self.log_bytes().decode(errors='replace')

  def log_bytes(self):
    return self._log.read_bytes()

  @property
  def tcp(self):
    return next(a for a in self.addresses if not a.startswith('unix:'))

  @property
  def unix(self):
    return next(a for a in self.addresses if a.startswith('unix:'))

  @property
  def admin(self):
    """Returns the host and the port of the admin port, which the log names.
    The server does not wait until its log is written."""
    return poll_until(
        lambda: re.search(r'the admin port serves http://(\S+)/', self.log()),
        START_SECONDS, 'the address of the admin port')[1]

  def signal(self, number=signal.SIGTERM):
    self.process.send_signal(number)

  def wait(self, seconds=STOP_SECONDS):
    """Waits for the end of the process and returns the exit code."""
    try:
      return self.process.wait(seconds)
    except subprocess.TimeoutExpired:
      self.kill()
      raise ServerError(
          f'attnd ran on {seconds} s later:\n{self.log()}') from None

  def stop(self, check=True):
    """Sends SIGTERM unless the process has ended. Raises an error unless it
    exits with 0."""
    if self.process is None:
      return
    if self.process.poll() is None:
      self.signal()
      self.wait()
    code, self.process = self.process.returncode, None
    if check and code != 0:
      raise ServerError(f'attnd exited with {code}:\n{self.log()}')

  def kill(self):
    """Ends the process as a crash would."""
    if self.process.poll() is None:
      self.process.kill()
    self.process.wait()

  def forget(self):
    """Accepts any exit code, for a test that has seen the process end."""
    self.process.wait(STOP_SECONDS)
    self.process = None


def open_channel(address):
  """Returns a separate connection without limits on messages."""
  return grpc.insecure_channel(
      address,
      options=[('grpc.max_send_message_length', -1),
               ('grpc.max_receive_message_length', -1),
               ('grpc.enable_http_proxy', 0),
               ('grpc.use_local_subchannel_pool', 1)])
