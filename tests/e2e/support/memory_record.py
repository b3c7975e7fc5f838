"""How much memory a running server holds, seen from outside."""

import contextlib
import ctypes
import mmap
import os
import pathlib
import re
import signal
import struct

from support.server import poll_until

FIELDS = ('heap_bytes', 'heap_peak_bytes', 'mappings', 'hold', 'holding')
HOLD_OFFSET = 8 * FIELDS.index('hold')
PEAK_OFFSET = 8 * FIELDS.index('heap_peak_bytes')
TGKILL = {'x86_64': 234, 'aarch64': 131}


class MemoryRecord:
  """What memory_record.cc records about a server that loads it.

  Pass `environment` to the server, and then the server to attach().
  """

  def __init__(self, library, folder):
    path = pathlib.Path(folder) / 'memory_record'
    path.write_bytes(bytes(8 * len(FIELDS)))
    self.environment = {'LD_PRELOAD': str(library), 'MEMORY_RECORD': str(path)}
    with path.open('r+b') as file:
      self._record = mmap.mmap(file.fileno(), 0)
    self._pid = None

  def attach(self, server):
    self._pid = server.process.pid

  def __getitem__(self, field):
    return struct.unpack_from('<q', self._record, 8 * FIELDS.index(field))[0]

  def reset_peaks(self):
    struct.pack_into('<q', self._record, PEAK_OFFSET, self['heap_bytes'])
    # Sets VmHWM to what is resident now.
    pathlib.Path(f'/proc/{self._pid}/clear_refs').write_text('5')

  def status(self, *names):
    """Returns lines of /proc/PID/status in bytes."""
    text = pathlib.Path(f'/proc/{self._pid}/status').read_text()
    return [1024 * int(re.search(rf'^{name}:\s*(\d+) kB', text, re.M)[1])
            for name in names]

  def mapped_bytes(self):
    """Returns how much private memory outside of malloc's heap is resident."""
    total, counts = 0, False
    with open(f'/proc/{self._pid}/smaps', encoding='ascii') as smaps:
      for line in smaps:
        words = line.split()
        if not words[0].endswith(':'):
          counts = len(words) == 5  # neither a file nor the heap
        elif counts and words[0] == 'Anonymous:':
          total += 1024 * int(words[1])
    return total

  @contextlib.contextmanager
  def workers_held(self):
    """Keeps the workers of the server from computing. They are idle before."""
    tasks = pathlib.Path(f'/proc/{self._pid}/task')
    workers = [int(task.name) for task in tasks.iterdir()
               if (task / 'comm').read_text().strip() == 'attnd-worker']
    assert workers
    libc = ctypes.CDLL(None, use_errno=True)
    number = TGKILL[os.uname().machine]
    struct.pack_into('<q', self._record, HOLD_OFFSET, 1)
    try:
      for worker in workers:
        assert libc.syscall(number, self._pid, worker, signal.SIGURG) == 0
      poll_until(lambda: self['holding'] == len(workers), 60, 'held workers')
      yield
    finally:
      struct.pack_into('<q', self._record, HOLD_OFFSET, 0)
