"""A simple HTTP/2 client (RFC 9113), for things that gRPC libraries do not
do."""

import collections
import contextlib
import select
import socket
import time

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = (
    0, 1, 3, 4, 6, 7, 8)
END_STREAM = 1
END_HEADERS = 4
ACK = 1
INITIAL_WINDOW_SIZE = 4
CONNECTION = 0  # the stream number that stands for the whole connection
STREAM = 1
WINDOW = 65535
FRAME = 16384


def number(data):
  return int.from_bytes(data, 'big')


def frame(kind, payload=b'', flags=0, stream=0):
  return (len(payload).to_bytes(3, 'big') + bytes([kind, flags]) +
          stream.to_bytes(4, 'big') + payload)


def message_prefix(size_bytes):
  """Returns the bytes that gRPC puts before a message of this size."""
  return b'\0' + size_bytes.to_bytes(4, 'big')


def hpack_number(value, prefix_bits):
  """Returns an integer as RFC 7541, 5.1 encodes it, with no bits above its
  prefix."""
  most = (1 << prefix_bits) - 1
  if value < most:
    return bytes([value])
  value -= most
  out = bytearray([most])
  while value >= 128:
    out.append(value % 128 + 128)
    value //= 128
  out.append(value)
  return bytes(out)


def header(name, value):
  """Encodes one header literally, without a place in the table."""
  name = name if isinstance(name, bytes) else name.encode()
  value = value if isinstance(value, bytes) else value.encode()
  return (b'\0' + hpack_number(len(name), 7) + name +
          hpack_number(len(value), 7) + value)


def literals(fields):
  """Encodes a block of headers. A header whose value is None is left out."""
  return b''.join(header(name, value) for name, value in fields.items()
                  if value is not None)


def request_headers(method, more=None):
  """Returns the headers of a call. `more` names additional or different
  headers."""
  return literals({':method': 'POST', ':scheme': 'http', ':path': method,
                   ':authority': 'test', 'content-type': 'application/grpc',
                   'te': 'trailers', **(more or {})})


class Connection:
  """One connection and its streams. Not thread-safe.

  If a window is given, the server can send only that much of each answer, and
  what grant() adds. Only the windows of streams then limit answers.
  """

  def __init__(self, address, window=None):
    host, port = address.rsplit(':', 1)
    self._socket = socket.create_connection((host, int(port)), timeout=60)
    self._received = b''
    self._window = {CONNECTION: WINDOW}  # how much the client can send
    self.settings = {}
    self.closed = False  # the connection was ended, or will be
    self.data_bytes = collections.Counter()  # by stream, including prefixes
    self.headers = collections.defaultdict(bytes)  # by stream, still encoded
    self.ended = set()  # the streams that the server has ended
    self._socket.sendall(b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n')
    if window is None:
      self.send(frame(SETTINGS))
    else:
      self.send(frame(SETTINGS, INITIAL_WINDOW_SIZE.to_bytes(2, 'big') +
                       window.to_bytes(4, 'big')))
      self.grant(1 << 30, CONNECTION)
    while not self.settings:
      self.take_frames(60)
      if self.closed:
        raise ConnectionError('the server ended the connection at once')

  def close(self):
    """Closes the connection. This also ends a wait in another thread."""
    with contextlib.suppress(OSError):
      self._socket.shutdown(socket.SHUT_RDWR)
    self._socket.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  @property
  def reset(self):
    """Returns whether the server has ended the first stream or the
    connection."""
    return self.closed or STREAM in self.ended

  def take_frames(self, seconds=0):
    """Processes the frames that have arrived. If there are none, waits up to
    this time."""
    while not self.closed and select.select([self._socket], [], [], seconds)[0]:
      try:
        data = self._socket.recv(1 << 20)
      except ConnectionError:
        data = b''
      self.closed |= not data
      self._received += data
      seconds = 0
    while len(self._received) >= 9:
      end = 9 + number(self._received[:3])
      if len(self._received) < end:
        break
      head, payload = self._received[:9], self._received[9:end]
      self._received = self._received[end:]
      self._take(head[3], head[4], number(head[5:9]), payload)

  def take_until(self, condition, seconds, what):
    """Processes frames until condition() holds, for a limited time."""
    limit = time.monotonic() + seconds
    while not condition():
      if time.monotonic() > limit:
        raise TimeoutError(f'{what}: not within {seconds} s')
      self.take_frames(0.05)

  def _take(self, kind, flags, stream, payload):
    if kind == SETTINGS and not flags & ACK:
      before = self.settings.get(INITIAL_WINDOW_SIZE, WINDOW)
      self.settings.update(
          (number(payload[at:at + 2]), number(payload[at + 2:at + 6]))
          for at in range(0, len(payload), 6))
      added = self.settings.get(INITIAL_WINDOW_SIZE, WINDOW) - before
      for known in self._window:
        self._window[known] += added if known != CONNECTION else 0
      self.send(frame(SETTINGS, flags=ACK))
    elif kind == PING and not flags & ACK:
      self.send(frame(PING, payload, ACK))
    elif kind == WINDOW_UPDATE:
      if stream in self._window:
        self._window[stream] += number(payload)
    elif kind == DATA:
      self.data_bytes[stream] += len(payload)
    elif kind == HEADERS:
      self.headers[stream] += payload
    elif kind == GOAWAY:
      self.closed = True
    if kind == RST_STREAM or kind in (DATA, HEADERS) and flags & END_STREAM:
      self.ended.add(stream)

  def send(self, data):
    """Sends these bytes, without checking them."""
    try:
      self._socket.sendall(data)
    except ConnectionError:
      self.closed = True

  def send_empty_calls(self, count, block):
    """Sends calls with these headers and no message, whose answers are not
    read."""
    self.send(b''.join(frame(HEADERS, block, END_HEADERS | END_STREAM, stream)
                        for stream in range(1, 2 * count, 2)))

  def grant(self, size_bytes, stream=STREAM):
    """Lets the server send this much more."""
    self.send(frame(WINDOW_UPDATE, size_bytes.to_bytes(4, 'big'),
                     stream=stream))

  def expect(self, stream):
    """Records a stream that the caller opens with send()."""
    self._window[stream] = self.settings.get(INITIAL_WINDOW_SIZE, WINDOW)

  def open_stream(self, method, stream=STREAM, headers=None, flags=0):
    """Begins a call, and sends only its headers."""
    block = request_headers(method, headers)
    self.expect(stream)
    self.send(frame(HEADERS, block, END_HEADERS | flags, stream))

  def begin_call(self, method, message_bytes, stream=STREAM):
    """Begins a call with a message of this size, and sends none of the
    message."""
    self.open_stream(method, stream)
    self.send_data(message_prefix(message_bytes), stream)

  def call(self, method, message, stream=STREAM, headers=None):
    """Sends a whole unary call. Does not read its answer."""
    self.open_stream(method, stream, headers)
    self.send_data(message_prefix(len(message)) + message, stream)
    self.end(stream)

  def end(self, stream=STREAM):
    """Ends the client's side of a call."""
    self.send(frame(DATA, flags=END_STREAM, stream=stream))

  def send_data(self, data, stream=STREAM):
    """Sends as much as the server allows. Sends less if the server ends the
    call."""
    view = memoryview(data)
    while len(view) and not self.closed and stream not in self.ended:
      size = min(len(view), FRAME, self._window[CONNECTION],
                 self._window[stream])
      self.take_frames(0 if size > 0 else 1)
      if size <= 0:
        continue
      self._window[CONNECTION] -= size
      self._window[stream] -= size
      self.send(frame(DATA, bytes(view[:size]), stream=stream))
      view = view[size:]
