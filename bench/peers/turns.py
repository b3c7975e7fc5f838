"""What the compared systems in Python share: the protocol of the pipe to
contest.py. turns.h has the same for C++."""

import json
import os
import pathlib
import sys
import time

import numpy

# NumPy has no bf16, but its bits are enough here.
STORAGE = {'f32': numpy.float32, 'f16': numpy.float16, 'bf16': numpy.uint16}


class Refused(Exception):
  """The system does not support this call. The text says why."""


def load(folder, name, dtype, shape):
  """Loads a tensor into memory that is aligned to cache lines, and in huge
  pages if NumPy requests them."""
  raw = numpy.fromfile(pathlib.Path(folder, name), numpy.uint8)
  return aligned(raw).view(STORAGE[dtype]).reshape(shape)


def aligned(array):
  block = numpy.empty(array.nbytes + 64, numpy.uint8)
  start = -block.ctypes.data % 64
  to = block[start:start + array.nbytes].view(array.dtype)
  to = to.reshape(array.shape)
  to[...] = array
  return to


def tensors(case, folder):
  """Returns query, key and value as [heads, rows, head_dim]."""
  q_shape = case['q_heads'], case['q_len'], case['head_dim']
  kv_shape = case['kv_heads'], case['kv_len'], case['head_dim']
  return [load(folder, name, case['dtype'], shape) for name, shape in
          (('query', q_shape), ('key', kv_shape), ('value', kv_shape))]


def _timed(call):
  before = time.perf_counter()
  call()
  return time.perf_counter() - before


def _turn(call, seconds):
  first = _timed(call)
  if first > seconds / 2:
    return first
  spent, calls = 0, 0
  while spent < seconds:
    spent += _timed(call)
    calls += 1
  return spent / calls


def serve(version, prepare):
  """Answers commands until the pipe ends. prepare(case, folder) returns (call,
  answer): a function that makes one attention call, and one that returns its
  result in f32, as [heads, rows, head_dim]."""
  # The output of a library must not become a part of the answers.
  pipe = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  call = answer = None
  for line in sys.stdin:
    request = json.loads(line)
    reply = {}
    if request['do'] == 'prepare':
      call = answer = None
      try:
        call, answer = prepare(request['case'], request['folder'])
        call()
      except Refused as refusal:
        reply['refused'] = str(refusal)
    elif request['do'] == 'turn':
      reply['seconds'] = _turn(call, request['seconds'])
    elif request['do'] == 'answer':
      numpy.ascontiguousarray(answer(), numpy.float32).tofile(request['path'])
    elif request['do'] == 'forget':
      call = answer = None
    elif request['do'] == 'version':
      reply['version'] = version
    print(json.dumps(reply), file=pipe, flush=True)
