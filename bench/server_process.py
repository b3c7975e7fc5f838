"""Runs servers for a bench."""

import pathlib
import subprocess
import tempfile
import time


class Process:
  """A server in a process of its own. It listens on a unix socket and on TCP, which
  are two clients for it. Leaving the context stops it."""

  def __init__(self, *command):
    """`command` gets the flags --listen and --address-file in addition."""
    self._command = list(command)
    self._folder = tempfile.TemporaryDirectory(prefix='attnd-')
    folder = pathlib.Path(self._folder.name)
    self.address = f'unix:{folder / "server.sock"}'
    self.pid = self.tcp_address = None
    self.shm_socket = str(folder / 'shm.sock')
    self._ready = folder / 'addresses'

  def __enter__(self):
    self._process = subprocess.Popen([
        *self._command, f'--listen={self.address},127.0.0.1:0',
        f'--address-file={self._ready}'])
    while not self._ready.exists():
      if self._process.poll() is not None:
        raise RuntimeError(
            f'{self._command[0]} exited with {self._process.returncode}')
      time.sleep(0.02)
    self.pid = self._process.pid
    self.tcp_address = self._ready.read_text(encoding='utf-8').split()[1]
    return self

  def __exit__(self, *_):
    self._process.terminate()
    self._process.wait()
    self._folder.cleanup()


class Server(Process):
  """attnd."""

  def __init__(self, program, *flags):
    super().__init__(program, '--admin-listen=', '--log-level=error', *flags)
    self._command.append(f'--shm-socket={self.shm_socket}')
