"""Threads that call servers until a test has seen enough."""

import threading

from support.server import poll_until


class Callers:
  """A context manager: `count` threads that run call_until_over(index) until it
  ends. Derived classes define that function, which returns when `over` is set,
  and calls answered() for each answer.

  failures: what went wrong, for the test to look at.
  """

  def __init__(self, count):
    self.over = threading.Event()
    self.lock = threading.Lock()
    self.failures = []
    self._answers = 0
    self._threads = [threading.Thread(target=self._run, args=(index,))
                     for index in range(count)]

  def __enter__(self):
    for thread in self._threads:
      thread.start()
    return self

  def __exit__(self, *_):
    self.over.set()
    for thread in self._threads:
      thread.join()

  def _run(self, index):
    try:
      self.call_until_over(index)
    except BaseException as error:  # pylint: disable=broad-except
      self.failures.append(repr(error))

  def answered(self):
    with self.lock:
      self._answers += 1

  @property
  def answers(self):
    with self.lock:
      return self._answers

  def wait_for(self, answers):
    """Waits until `answers` calls have been answered, or one has failed."""
    poll_until(lambda: self.failures or self.answers >= answers, 600,
               f'{answers} answers')
