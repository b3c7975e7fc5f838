"""HTTP/2 by hand (RFC 9113), for what no gRPC library does."""

import select
import socket

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = (
    0, 1, 3, 4, 6, 7, 8)
END_STREAM = 1
END_HEADERS = 4
ACK = 1
INITIAL_WINDOW_SIZE = 4
STREAM = 1
WINDOW = 65535
FRAME = 16384


def number(data):
  return int.from_bytes(data, 'big')


def frame(kind, payload=b'', flags=0, stream=0):
  return (len(payload).to_bytes(3, 'big') + bytes([kind, flags]) +
          stream.to_bytes(4, 'big') + payload)


def headers(method, more=None):
  """The headers of a call, and `more` of up to 126 bytes each."""
  fields = {':method': 'POST', ':scheme': 'http', ':path': method,
            ':authority': 'test', 'content-type': 'application/grpc',
            'te': 'trailers', **(more or {})}
  return literals(fields)


def literals(fields):
  """A block of headers, of up to 126 bytes each."""
  text = lambda t: bytes([len(t)]) + t.encode()
  return b''.join(b'\0' + text(k) + text(v) for k, v in fields.items())


class Connection:
  """One connection with one stream at most. Not thread-safe."""

  def __init__(self, address):
    host, port = address.rsplit(':', 1)
    self._socket = socket.create_connection((host, int(port)), timeout=60)
    self._received = b''
    self._window = {0: WINDOW, STREAM: WINDOW}
    self.settings = {}
    self.reset = False  # the stream, or the connection, was ended
    self._socket.sendall(b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + frame(SETTINGS))
    while not self.settings:
      self.take_frames(60)

  def close(self):
    self._socket.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def take_frames(self, seconds=0):
    """Takes what is here, and waits so long where nothing is."""
    while not self.reset and select.select([self._socket], [], [], seconds)[0]:
      try:
        data = self._socket.recv(1 << 20)
      except ConnectionError:
        data = b''
      self.reset |= not data
      self._received += data
      seconds = 0
    while len(self._received) >= 9:
      end = 9 + number(self._received[:3])
      if len(self._received) < end:
        break
      head, payload = self._received[:9], self._received[9:end]
      self._received = self._received[end:]
      self._take(head[3], head[4], number(head[5:9]), payload)

  def _take(self, kind, flags, stream, payload):
    if kind == SETTINGS and not flags & ACK:
      self.settings = {number(payload[at:at + 2]): number(payload[at + 2:at + 6])
                       for at in range(0, len(payload), 6)}
      self._window[STREAM] += \
          self.settings.get(INITIAL_WINDOW_SIZE, WINDOW) - WINDOW
      self._send(frame(SETTINGS, flags=ACK))
    elif kind == PING and not flags & ACK:
      self._send(frame(PING, payload, ACK))
    elif kind == WINDOW_UPDATE:
      self._window[stream] += number(payload)
    elif kind == HEADERS or kind in (RST_STREAM, GOAWAY):
      self.reset = True  # an answer, where no request was finished

  def _send(self, data):
    try:
      self._socket.sendall(data)
    except ConnectionError:
      self.reset = True

  def begin_call(self, method, message_bytes):
    """A call whose message is of this size, without any of it."""
    block = headers(method)
    self._send(frame(HEADERS, block, END_HEADERS, STREAM))
    self.send_data(b'\0' + message_bytes.to_bytes(4, 'big'))

  def send_empty_calls(self, count, block):
    """Calls of these headers without a message, whose answers are not read."""
    self._send(b''.join(frame(HEADERS, block, END_HEADERS | END_STREAM, stream)
                        for stream in range(1, 2 * count, 2)))

  def send_data(self, data):
    """Sends as the server grants; less where it ends the call."""
    view = memoryview(data)
    while len(view) and not self.reset:
      size = min(len(view), FRAME, *self._window.values())
      self.take_frames(0 if size > 0 else 1)
      if size <= 0:
        continue
      for stream in self._window:
        self._window[stream] -= size
      self._send(frame(DATA, bytes(view[:size]), stream=STREAM))
      view = view[size:]
