"""Arrays in memory that a server on the same host shares, so that they need not
be sent. docs/shared-memory.md has the protocol. Knows no calls."""

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
_lock = threading.Lock()  # of _regions


class RegionRefused(Exception):
  """The server takes no region of this process, or none of this size."""


class SharedRegion:
  """size_bytes of memory, registered on the server's --shm-socket.

  The region lives until close(), which the end of the process and of a `with`
  block imply; its arrays stay usable here. After a call that failed on this side
  (a timeout), the server may write to output_region for a moment more.
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
    """Gives the region up; calls that run finish on it."""
    self._socket.close()
    with _lock:
      _regions.discard(self)

  def array(self, shape, dtype=np.float32):
    """The next free part as an array, all zero at first."""
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
  """Where `array` lies, as a SharedMemory; None where it is in no region."""
  for region in _all_regions():
    offset = region._offset_of(array)  # pylint: disable=protected-access
    if offset is None:
      continue
    if offset % _ALIGNMENT or not array.flags.c_contiguous:
      raise ValueError(f'{field}: expected a contiguous array that starts at a '
                       f'multiple of {_ALIGNMENT} bytes in its region, got '
                       f'strides {array.strides} at {offset}; copy it into one '
                       'that region.array() makes')
    if array.dtype.byteorder == '>':  # the server would take it for another
      raise ValueError(f'{field}: expected a little-endian array in a region, '
                       f'got {array.dtype.str}; make it by region.array() of '
                       f'{array.dtype.newbyteorder("<").str}')
    return pb.SharedMemory(handle=region.handle, offset_bytes=offset)
  return None


def array_at(place, shape, dtype):
  """The array there; None where its region was closed meanwhile."""
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
