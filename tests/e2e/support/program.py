"""Programs other than attnd, as child processes of a test."""

import pathlib
import subprocess
import tempfile

from support.server import START_SECONDS, STOP_SECONDS, poll_until


class Program:
  """A context manager: a program with a folder for its files. Derived classes
  have `command()`, which returns its command line, and may have `started()`,
  which waits until it serves.

  name: what errors call it.
  """

  def __init__(self, name):
    self.name = name
    self._folder = tempfile.TemporaryDirectory(prefix=f'{name.lower()}-')
    self.folder = pathlib.Path(self._folder.name)
    self.process = None

  def __enter__(self):
    with open(self.folder / 'log', 'ab') as log:
      self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL,
                                      stdout=log, stderr=log)
    try:
      self.started()
    except BaseException:
      self._end()
      raise
    return self

  def __exit__(self, *_):
    self._end()
    self._folder.cleanup()

  def started(self):
    pass

  def poll(self, condition, what):
    """Returns the first true value of condition(), while the program runs and
    for the time that a start may take."""

    def check():
      if self.process.poll() is not None:
        raise RuntimeError(
            f'{self.name} exited with {self.process.returncode}:\n' +
            (self.folder / 'log').read_text(errors='replace'))
      return condition()

    return poll_until(check, START_SECONDS, what)

  def _end(self):
    self.process.terminate()
    try:
      self.process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
      self.process.kill()
      self.process.wait()
