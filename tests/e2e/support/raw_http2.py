"""A fast HTTP/2 client for attacks, which does not follow the rules of RFC
9113.

Frames are made before they are sent, and a connection can have any number of
streams. One thread reads for all connections. It answers SETTINGS and PING and
keeps the flow control windows, unless a connection is told not to read.
"""

import collections
import itertools
import os
import re
import select
import socket
import threading
import time

from support.http2 import (ACK, DATA, END_HEADERS, FRAME, HEADERS,
                           INITIAL_WINDOW_SIZE, PING, RST_STREAM, SETTINGS,
                           WINDOW, WINDOW_UPDATE, frame, number,
                           request_headers)

PREFACE = b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'
PRIORITY, CONTINUATION = 2, 9
END_STREAM = 1
HEADER_TABLE_SIZE = 1
SERVICE = '/attnd.v1.AttentionService/'
CANCEL = (8).to_bytes(4, 'big')
# The most that is written at once, so that answers to pings can be sent in
# between.
PIECE = 1 << 16
_STATUS = re.compile(rb'grpc-status(.)(\d{1,2})', re.DOTALL)


def header_block(method, **extra):
  """Returns the header block of a call of `method`. `extra` names more or
  different headers.

  Underscores in names stand for hyphens. A header whose value is None is left
  out.
  """
  path = method if method.startswith('/') else SERVICE + method
  return request_headers(path, {name.replace('_', '-'): value
                                for name, value in extra.items()})


def message(payload, claimed=None):
  """Returns a message with the prefix of gRPC. `claimed` is a length in the
  prefix that differs from the real one."""
  size = len(payload) if claimed is None else claimed
  return b'\0' + size.to_bytes(4, 'big') + payload


def connect(address, seconds=10, source=None):
  """Returns a plain socket that is connected to host:port or unix:PATH. `source`
  is the address of this host from which a connection to host:port comes."""
  if address.startswith('unix:'):
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(seconds)
    made.connect(address.removeprefix('unix:'))
    return made
  host, port = address.rsplit(':', 1)
  made = socket.create_connection((host, int(port)), timeout=seconds,
                                  source_address=source and (source, 0))
  made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
  return made


class Reader:
  """A context manager: the thread that reads for connections."""

  def __init__(self):
    self._poll = select.epoll()
    self._connections = {}  # by descriptor
    self._over = False
    self._thread = threading.Thread(target=self._run, daemon=True)

  def __enter__(self):
    self._thread.start()
    return self

  def __exit__(self, *_):
    self._over = True
    self._thread.join()
    self._poll.close()

  def add(self, connection, descriptor):
    self._connections[descriptor] = connection
    self._poll.register(descriptor, select.EPOLLIN)

  def remove(self, connection, descriptor):
    """Removes a connection, unless its descriptor belongs to another one by
    now."""
    if self._connections.get(descriptor) is connection:
      del self._connections[descriptor]
      self._poll.unregister(descriptor)

  def _run(self):
    while not self._over:
      for descriptor, _ in self._poll.poll(0.1):
        connection = self._connections.get(descriptor)
        if connection is not None:
          connection.take()


class RawConnection:
  """One connection. The thread of its owner sends, and the thread of the
  reader reads.

  reader: who reads. If it is None, nothing is read or answered.
  window: how much the client lets the server send of each answer.
  renews: whether windows are renewed for bytes that were read.
  """

  def __init__(self, address, reader=None, *, window=WINDOW, renews=True,
               seconds=10):
    self._socket = connect(address, seconds)
    self._reader = reader
    self._descriptor = self._socket.fileno()
    self._sending = threading.Lock()
    self._taking = threading.Lock()  # or closes
    self._closed = False
    self._changed = threading.Condition()
    self._answers = collections.deque()  # answers that wait for the lock
    self._received = bytearray()
    self._initial, self._window = WINDOW, {0: WINDOW}
    self._renews = renews
    self._to_renew = 0
    self._ids = itertools.count(1, 2)
    self.ended = False  # by the server or its system
    self.stuck = False  # the server did not read for too long
    self.settings = None
    self.over = set()  # streams that the server has ended
    self.begun = set()  # streams that the server has answered with a header
    self.statuses = {}  # of streams: gRPC's codes
    self.data_bytes = 0
    self.send(PREFACE + frame(
        SETTINGS, HEADER_TABLE_SIZE.to_bytes(2, 'big') + bytes(4) +
        INITIAL_WINDOW_SIZE.to_bytes(2, 'big') + window.to_bytes(4, 'big')))
    if reader is not None:
      reader.add(self, self._descriptor)
      if not self.wait_for(lambda: self.settings is not None, seconds):
        self.close()
        raise TimeoutError(f'{address} does not answer a preface')

  def close(self):
    with self._taking:
      self._stop_reading()
      self._closed = True
      self._socket.close()

  def _stop_reading(self):
    if self._reader is not None:
      self._reader.remove(self, self._descriptor)
      self._reader = None

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  # --- sending ---------------------------------------------------------------

  @property
  def gone(self):
    return self.ended or self.stuck

  def send(self, data):
    """Sends bytes. Returns False if the server has ended the connection or
    does not read."""
    view = memoryview(data)
    try:
      while len(view):
        if self.gone:
          return False
        with self._sending:
          while self._answers:
            self._socket.sendall(self._answers.popleft())
          self._socket.sendall(view[:PIECE])
        view = view[PIECE:]
    except TimeoutError:
      self.stuck = True
    except OSError:
      self._end()
    return not self.gone

  def new_streams(self, count):
    return list(itertools.islice(self._ids, count))

  def open(self, block, flags=0, stream=None):
    """Begins a call and returns its stream."""
    stream = stream or next(self._ids)
    self.send(frame(HEADERS, block, END_HEADERS | flags, stream))
    return stream

  def call(self, block, payload):
    """Sends a whole call whose message needs no window. Returns its stream."""
    stream = next(self._ids)
    self.send(frame(HEADERS, block, END_HEADERS, stream) +
              frame(DATA, message(payload), END_STREAM, stream))
    return stream

  def send_data(self, stream, data, *, end=False, seconds=30):
    """Sends as much as the server's windows allow. Returns how much was
    sent."""
    view, limit, sent = memoryview(data), time.monotonic() + seconds, 0
    while len(view) or end:
      with self._changed:
        own = self._window.setdefault(stream, self._initial)
        size = min(len(view), FRAME, own, self._window[0])
        if size <= 0 and len(view):
          if self.gone or stream in self.over or time.monotonic() > limit:
            return sent
          self._changed.wait(0.2)
          continue
        self._window[stream] -= size
        self._window[0] -= size
      last = size == len(view)
      if not self.send(frame(DATA, bytes(view[:size]),
                             END_STREAM if end and last else 0, stream)):
        return sent
      view, sent = view[size:], sent + size
      if last:
        break
    return sent

  # --- waiting ---------------------------------------------------------------

  def wait_for(self, condition, seconds):
    """Waits until the condition holds. Checks it after each change of the
    connection, for a limited time, and returns whether it held."""
    with self._changed:
      return self._changed.wait_for(lambda: condition() or self.ended,
                                    seconds) and condition()

  def wait_over(self, stream, seconds):
    """Returns gRPC's status code of a call, or None if the server sent none."""
    self.wait_for(lambda: stream in self.over, seconds)
    return self.statuses.get(stream)

  def flush(self, seconds):
    """Returns whether the server has taken everything, on a connection that
    nobody reads.

    It sends a last PING and reads until its answer, including everything
    before it.
    """
    mark, tail = os.urandom(8), b''
    self.send(frame(PING, mark))
    limit = time.monotonic() + seconds
    self._socket.settimeout(0.2)
    while not self.ended and time.monotonic() < limit:
      try:
        data = self._socket.recv(1 << 18)
      except TimeoutError:
        continue
      except OSError:
        data = b''
      if not data:
        self._end()
      tail = tail[-16:] + data
      if mark in tail:
        return True
    return False

  # --- the reader's side -----------------------------------------------------

  def _end(self):
    with self._changed:
      self.ended = True
      self._changed.notify_all()

  def take(self):
    """Processes the bytes that have arrived. The reader calls it."""
    with self._taking:
      if not self._closed:
        self._take()

  def _take(self):
    try:
      data = self._socket.recv(1 << 18, socket.MSG_DONTWAIT)
    except (BlockingIOError, TimeoutError):
      return
    except OSError:
      data = b''
    if not data:
      self._stop_reading()
      self._end()
      return
    self._received += data
    at = 0
    with self._changed:
      while len(self._received) - at >= 9:
        end = at + 9 + number(self._received[at:at + 3])
        if len(self._received) < end:
          break
        self._take_frame(
            self._received[at + 3], self._received[at + 4],
            number(self._received[at + 5:at + 9]) & 0x7fffffff,
            bytes(self._received[at + 9:end]))
        at = end
      self._changed.notify_all()
    del self._received[:at]
    self._answer()

  def _take_frame(self, kind, flags, stream, payload):
    if kind == SETTINGS and not flags & ACK:
      settings = {
          number(payload[at:at + 2]): number(payload[at + 2:at + 6])
          for at in range(0, len(payload), 6)}
      initial = settings.get(INITIAL_WINDOW_SIZE, self._initial)
      for other in self._window.keys() - {0}:
        self._window[other] += initial - self._initial
      self._initial = initial
      self.settings = {**(self.settings or {}), **settings}
      self._answers.append(frame(SETTINGS, flags=ACK))
    elif kind == PING and not flags & ACK:
      self._answers.append(frame(PING, payload, ACK))
    elif kind == WINDOW_UPDATE:
      self._window[stream] = (
          self._window.get(stream, self._initial) + number(payload))
    elif kind == DATA:
      self.data_bytes += len(payload)
      self._to_renew += len(payload)
      if self._renews and self._to_renew > WINDOW // 2:
        self._answers.append(frame(
            WINDOW_UPDATE, self._to_renew.to_bytes(4, 'big')))
        self._to_renew = 0
      if self._renews and payload:
        self._answers.append(frame(
            WINDOW_UPDATE, len(payload).to_bytes(4, 'big'), stream=stream))
    elif kind == HEADERS:
      self.begun.add(stream)
      found = _STATUS.search(payload)
      if found:
        self.statuses[stream] = int(found[2][:found[1][0]])
    if kind == RST_STREAM or (
        kind in (DATA, HEADERS) and flags & END_STREAM):
      self.over.add(stream)
      self._window.pop(stream, None)

  def _answer(self):
    """Sends pending answers, unless the owner's thread is sending."""
    if not self._sending.acquire(blocking=False):
      return
    try:
      while self._answers:
        data = self._answers.popleft()
        sent = os.write(self._descriptor, data)
        if sent < len(data):
          self._answers.appendleft(data[sent:])
          return
    except BlockingIOError:
      self._answers.appendleft(data)
    except OSError:
      pass
    finally:
      self._sending.release()

