"""A container of the image in docker or podman, started in the same way as by
compose.yaml.

ATTND_ENGINE is the command line of the engine, which `./dev image` chose.
"""

import os
import pathlib
import shlex
import subprocess
import tempfile
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from support.server import open_channel, poll_until

IMAGE = 'attnd:latest'
SOCKET_FOLDER = '/run/attnd'
USER = 65532
SERVING = health_pb2.HealthCheckResponse.SERVING

ENGINE = shlex.split(os.environ['ATTND_ENGINE'])
# Podman requests more open files than a container can have, runs health checks
# with systemd, and mounts writable folders into a read-only container.
ENGINE_FLAGS = [] if 'docker' in ENGINE[0] else [
    '--ulimit=nofile=1024:1024', '--ulimit=nproc=1024:1024',
    '--no-healthcheck', '--read-only-tmpfs=false'
]
SHUT = ['--read-only', '--network=none', '--cap-drop=all',
        '--security-opt=no-new-privileges']
COMMAND_SECONDS = 120


def engine(*arguments, binary=False):
  """Runs one command of the engine. Returns what it wrote."""
  done = subprocess.run([*ENGINE, *arguments], capture_output=True,
                        timeout=COMMAND_SECONDS, check=False)
  if done.returncode != 0:
    raise RuntimeError(f'{arguments}: exit code {done.returncode}:\n'
                       f'{done.stderr.decode()}')
  return done.stdout if binary else done.stdout.decode().strip()


def run_once(command, *flags):
  """Runs attnctl or attnd in a separate container. Returns what it wrote."""
  binary, *arguments = command
  return engine('run', '--rm', *ENGINE_FLAGS, *SHUT, *flags,
                f'--entrypoint=/usr/bin/{binary}', IMAGE, *arguments)


class Container:
  """A context manager: attnd in a container that shares the folder of its
  socket with the host.

  The container is started and SERVING inside the context, and removed after
  it.
  """

  def __init__(self, *flags):
    self._flags = flags
    self._folder = tempfile.TemporaryDirectory(prefix='attnd-image-')
    self.folder = pathlib.Path(self._folder.name)
    # A new volume gets this mode from the image.
    os.chown(self.folder, USER, USER)
    self.folder.chmod(0o755)
    self.socket_path = self.folder / 'attnd.sock'
    self.id = None
    self.start_seconds = None

  def __enter__(self):
    self.id = engine('create', *ENGINE_FLAGS, *SHUT,
                     f'--volume={self.folder}:{SOCKET_FOLDER}', *self._flags,
                     IMAGE)
    try:
      start = time.monotonic()
      engine('start', self.id)
      # This comes before the channel, which waits a second between its
      # attempts.
      poll_until(self.socket_path.exists, 60, 'a socket')
      with open_channel(self.address) as channel:
        poll_until(lambda: self._health(channel) == SERVING, 60, 'SERVING')
      # The time includes that of the engine, for which anybody who deploys the
      # image waits, too.
      self.start_seconds = time.monotonic() - start
    except BaseException as error:
      error.add_note(f'log of the container:\n{self.log()}')
      self._remove()
      raise
    return self

  def __exit__(self, *_):
    self._remove()

  @property
  def address(self):
    return f'unix:{self.socket_path}'

  @staticmethod
  def _health(channel):
    try:
      return health_pb2_grpc.HealthStub(channel).Check(
          health_pb2.HealthCheckRequest(), wait_for_ready=True,
          timeout=60).status
    except grpc.RpcError:
      return None

  def inspect(self, template):
    return engine('inspect', '--format', template, self.id)

  def log(self):
    done = subprocess.run([*ENGINE, 'logs', self.id], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True,
                          timeout=COMMAND_SECONDS, check=False)
    return done.stdout

  def run_inside(self, *command):
    return engine('exec', self.id, *command)

  def signal(self, name):
    engine('kill', f'--signal={name}', self.id)

  def wait(self):
    """Waits for the end of the container and returns the exit code."""
    return int(engine('wait', self.id))

  def _remove(self):
    engine('rm', '--force', self.id)
    self._folder.cleanup()
