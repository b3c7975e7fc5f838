"""Provides arrays in memory that a server on the same host shares, so that they do
not have to be sent. docs/shared-memory.md describes the protocol. This module does
not depend on calls."""

import contextlib
import fcntl
import math
import mmap
import os
import socket
import struct
import threading
import weakref

import numpy as np

from attnd.v1 import attention_pb2 as pb

_REGISTER = struct.pack('<4sHH', b'ASHM', 1, 1)
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_ALIGNMENT = 64
_REPLY_SECONDS = 10
_regions = weakref.WeakSet()
_lock = threading.Lock()  # guards _regions


class RegionRefused(Exception):
  """The server accepts no region from this process, or none of this size."""


class SharedRegion:
  """A region of size_bytes of memory that is registered on the server's --shm-socket.

  The region exists until close(), or the end of the `with` block or the process. Its
  arrays stay usable in this process after that. If a call fails on this side, for
  example by its timeout, the server can write to output_region for a short time
  after the failure.
  """

  def __init__(self, shm_socket, size_bytes):
    size_bytes = _round_up(size_bytes)
    fd = os.memfd_create('attnd', os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
      os.ftruncate(fd, size_bytes)
      fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
      self._bytes = np.frombuffer(mmap.mmap(fd, size_bytes), np.uint8)
      self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
      try:
        self._socket.settimeout(_REPLY_SECONDS)
        self._socket.connect(os.fspath(shm_socket))
        self.handle = self._register(fd)
      except BaseException:
        self._socket.close()
        raise
    finally:
      os.close(fd)
    self._start = self._bytes.ctypes.data
    self._used = 0
    with _lock:
      _regions.add(self)

  def _register(self, fd):
    with contextlib.suppress(BrokenPipeError):  # the reply says why
      socket.send_fds(self._socket, [_REGISTER], [fd])
    reply = self._socket.recv(1024)
    if reply[:8] == _REGISTER and len(reply) == 32:
      return reply[8:24]
    raise RegionRefused(reply[12:].decode('ascii', 'replace') or 'no reply')

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def close(self):
    """Unregisters the region. Running calls that use it finish normally."""
    self._socket.close()
    with _lock:
      _regions.discard(self)

  def array(self, shape, dtype=np.float32):
    """Returns the next free part of the region as an array of zeros."""
    dtype = np.dtype(dtype)
    size = math.prod(np.atleast_1d(shape).tolist()) * dtype.itemsize
    start = self._used
    if start + size > self._bytes.size:
      raise MemoryError(f'the region has {self._bytes.size - start} bytes left, '
                        f'the array needs {size}')
    self._used = start + _round_up(size)
    return self._bytes[start:start + size].view(dtype).reshape(shape)

  def _offset_of(self, array):
    offset = array.ctypes.data - self._start
    return offset if 0 <= offset < self._bytes.size else None


def place_of(field, array):
  """Returns the place of `array` as a SharedMemory, or None if it is not in a
  region."""
  for region in _all_regions():
    offset = region._offset_of(array)  # pylint: disable=protected-access
    if offset is None:
      continue
    if offset % _ALIGNMENT or not array.flags.c_contiguous:
      raise ValueError(f'{field}: expected a contiguous array that starts at a '
                       f'multiple of {_ALIGNMENT} bytes in its region, got '
                       f'strides {array.strides} at {offset}; copy it into an '
                       'array of region.array()')
    if array.dtype.byteorder == '>':  # the server would misread it
      raise ValueError(f'{field}: expected a little-endian array in a region, '
                       f'got {array.dtype.str}; create it with region.array() '
                       f'of {array.dtype.newbyteorder("<").str}')
    return pb.SharedMemory(handle=region.handle, offset_bytes=offset)
  return None


def array_at(place, shape, dtype):
  """Returns the array at `place`, or None if its region has been closed."""
  size = math.prod(shape) * dtype.itemsize
  for region in _all_regions():
    if region.handle == place.handle:
      part = region._bytes[place.offset_bytes:]  # pylint: disable=protected-access
      return part[:size].view(dtype).reshape(tuple(shape))
  return None


def _all_regions():
  with _lock:
    return list(_regions)


def _round_up(size):
  return -(-size // _ALIGNMENT) * _ALIGNMENT
