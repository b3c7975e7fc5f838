"""The client's side of the shared-memory socket, as docs/shared-memory.md
describes it, for valid and invalid requests."""

import contextlib
import fcntl
import mmap
import os
import socket
import struct

import numpy as np

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
HEADER = struct.Struct('<4sHH')
REGISTER = HEADER.pack(b'ASHM', 1, 1)


class Refused(Exception):
  """The server replied with an error. Has its code and text."""

  def __init__(self, code, text):
    super().__init__(text)
    self.code, self.text = code, text


def memory(size, seals=SEALS):
  """Creates a sealed memfd, which is closed when the context ends."""
  fd = os.memfd_create('attnd-e2e', os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
  os.ftruncate(fd, size)
  fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
  return os.fdopen(fd, 'r+b', buffering=0)


class Connection(contextlib.AbstractContextManager):
  """Speaks the protocol. Its regions end with the connection."""

  def __init__(self, path):
    self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    self.socket.settimeout(60)
    self.socket.connect(str(path))

  def __exit__(self, *_):
    self.socket.close()

  def ask(self, message, descriptors=()):
    """Returns the body of the reply. Raises Refused, or EOFError if the
    connection has ended."""
    with contextlib.suppress(BrokenPipeError):  # closed; the reply says why
      if descriptors:
        socket.send_fds(self.socket, [message], descriptors)
      else:
        self.socket.send(message)
    return self.reply()

  def reply(self):
    reply = self.socket.recv(1024)
    if not reply:
      raise EOFError
    magic, version, kind = HEADER.unpack_from(reply)
    assert (magic, version) == (b'ASHM', 1)
    body = reply[HEADER.size:]
    if kind == 3:
      raise Refused(struct.unpack_from('<i', body)[0], body[4:].decode())
    return body

  def register(self, fd):
    body = self.ask(REGISTER, [fd])
    handle, size = body[:16], *struct.unpack('<q', body[16:])
    assert size == os.fstat(fd).st_size
    return handle

  def unregister(self, handle):
    assert self.ask(HEADER.pack(b'ASHM', 1, 2) + handle) == b''


class Region(Connection):
  """One region on a separate connection, and arrays in it."""

  def __init__(self, path, size):
    super().__init__(path)
    with memory(size) as file:
      self.handle = self.register(file.fileno())
      self.map = mmap.mmap(file.fileno(), size)

  def array(self, offset, shape, dtype=np.float32):
    """Returns memory of the region. The server sees what is written to it."""
    count = int(np.prod(shape))
    return np.frombuffer(self.map, dtype, count, offset).reshape(shape)

  def place(self, pb, offset):
    return pb.SharedMemory(handle=self.handle, offset_bytes=offset)

  def tensor(self, client, offset, array):
    """Puts `array` at a place in the region, and returns the message that
    names the place."""
    self.array(offset, array.shape, array.dtype)[...] = array
    return client.pb.Tensor(dtype=client.types[array.dtype], shape=array.shape,
                            shared_memory=self.place(client.pb, offset))


def request_of(client, region, query, key, value, *, gap=4096, **options):
  """Returns a request whose tensors are all in `region`. There is one tensor
  every `gap` bytes from its start: query, key, value, output, lse, bias and
  mask."""
  pb = client.pb
  bias, mask = options.pop('bias', None), options.pop('mask', None)
  request = pb.AttentionRequest(
      query=region.tensor(client, 0, query),
      key=region.tensor(client, gap, key),
      value=region.tensor(client, 2 * gap, value),
      options=client.options(**options))
  request.options.output_region.CopyFrom(region.place(pb, 3 * gap))
  if request.options.return_lse:
    request.options.lse_region.CopyFrom(region.place(pb, 4 * gap))
  if bias is not None:
    request.options.bias.CopyFrom(region.tensor(client, 5 * gap, bias))
  if mask is not None:
    request.options.mask.CopyFrom(region.tensor(client, 6 * gap, mask))
  return request


def answer_of(client, region, tensor):
  """Returns the array at the place in the region that a tensor of the response
  names."""
  place = tensor.shared_memory
  assert place.handle == region.handle
  dtype = {number: name for name, number in client.types.items()}[tensor.dtype]
  return region.array(place.offset_bytes, tuple(tensor.shape), dtype)
