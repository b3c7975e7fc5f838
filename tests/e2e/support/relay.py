"""A relay between a client and a server that counts the bytes and the pings of
the client, and can change what the server says."""

import pathlib
import socket
import tempfile
import threading

from support.http2 import ACK, PING, number
from support.raw_http2 import PREFACE, connect

# How many bytes are read at once, at most.
PIECE = 1 << 16


class PingCounter:
  """Counts the bytes of a stream, and its HTTP/2 PING frames, but not
  acknowledgements."""

  def __init__(self):
    self.bytes = 0
    self.pings = 0
    self._skip = len(PREFACE)
    self._head = b''

  def take(self, data):
    self.bytes += len(data)
    at = 0
    while at < len(data):
      if self._skip:
        step = min(self._skip, len(data) - at)
        self._skip, at = self._skip - step, at + step
        continue
      step = 9 - len(self._head)
      self._head, at = self._head + data[at:at + step], at + step
      if len(self._head) == 9:
        self.pings += self._head[3] == PING and not self._head[4] & ACK
        self._skip, self._head = number(self._head[:3]), b''


class Relay:
  """A context manager that forwards every connection to `target`, which is
  host:port or unix:PATH, and listens on an address of the same kind.

  edit: gets bytes of the server, and can return others in their place.
  source: the address of this host that the target sees.
  """

  def __init__(self, target, edit=lambda data: None, source=None):
    self._target, self._edit, self._source = target, edit, source
    self._folder = tempfile.TemporaryDirectory(prefix='relay-')
    if target.startswith('unix:'):
      path = pathlib.Path(self._folder.name) / 'socket'
      self._listener = socket.socket(socket.AF_UNIX)
      self._listener.bind(str(path))
      self.address = f'unix:{path}'
    else:
      self._listener = socket.socket()
      self._listener.bind(('127.0.0.1', 0))
      self.address = f'127.0.0.1:{self._listener.getsockname()[1]}'
    self._listener.listen()
    self._sockets = []
    self._counters = []
    self._threads = [threading.Thread(target=self._accept)]

  @property
  def connections(self):
    return len(self._counters)

  @property
  def pings(self):
    """Returns the number of pings of all clients so far."""
    return sum(counter.pings for counter in self._counters)

  @property
  def bytes_from_clients(self):
    return sum(counter.bytes for counter in self._counters)

  def __enter__(self):
    self._threads[0].start()
    return self

  def __exit__(self, *_):
    for each in [self._listener, *self._sockets]:
      _shut(each)
    for thread in self._threads:
      thread.join()
    for each in [self._listener, *self._sockets]:
      each.close()
    self._folder.cleanup()

  def _accept(self):
    while True:
      try:
        client, _ = self._listener.accept()
      except OSError:  # __exit__ has shut the listener
        return
      server = connect(self._target, source=self._source)
      server.settimeout(None)
      counter = PingCounter()
      self._counters.append(counter)
      self._sockets += [client, server]
      for ends in ((client, server, counter.take),
                   (server, client, self._edit)):
        self._threads.append(threading.Thread(target=_pump, args=ends))
        self._threads[-1].start()


def _pump(source, target, look):
  try:
    while data := source.recv(PIECE):
      edited = look(data)
      target.sendall(data if edited is None else edited)
  except OSError:
    pass
  for each in (source, target):
    _shut(each)


def _shut(each):
  try:
    each.shutdown(socket.SHUT_RDWR)
  except OSError:  # it is shut already
    pass
