"""Honest clients that call a server during an attack, in a separate process.

They ask for health on every listener, on connections that they keep and on new
ones. They also ask for attention, and compare the answers with NumPy. The
process reads commands from stdin, one per line. `watch ADDRESS...` starts the
clients, and prints a line when all of them are connected. `report` stops them,
and prints what they saw as one line of JSON.
"""

import collections
import json
import os
import pathlib
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

# Clients that are cut off are counted below, so gRPC does not have to report
# them.
os.environ['GRPC_VERBOSITY'] = 'NONE'

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from support import reference, stubs
from support.client import Client, Refusal
from support.problems import KEY, OPTIONS, QUERY, VALUE, expected_options
from support.server import open_channel

# A call without an answer after this time has failed.
DEADLINE_SECONDS = 5
HEALTH_PAUSE, FRESH_PAUSE, CALL_PAUSE = 0.02, 0.25, 0.05


class Watch:
  """The clients that watch one attack."""

  def __init__(self, generated, addresses, seed, fresh):
    self._stubs, self._over = generated, threading.Event()
    self._lock = threading.Lock()
    self._health_ms, self._fresh_ms, self._call_ms = [], [], []
    self._failures = collections.Counter()
    self._right = self._refused = self._wrong = 0
    self._threads = [
        threading.Thread(target=run, args=(address, seed))
        for address in addresses
        for run in (self._kept, self._calls) + (
            (self._fresh,) if fresh else ())]
    # Each connection that is kept has one answer.
    self._connected = threading.Barrier(2 * len(addresses) + 1)
    for thread in self._threads:
      thread.start()

  def wait_connected(self):
    self._connected.wait(30)

  def _connect(self, channel):
    """Connects a client. Returns when the server has answered on the
    connection, or has failed to."""
    try:
      health_pb2_grpc.HealthStub(channel).Check(
          health_pb2.HealthCheckRequest(), timeout=DEADLINE_SECONDS)
    except grpc.RpcError:
      pass
    self._connected.wait(30)

  def report(self):
    self._over.set()
    for thread in self._threads:
      thread.join()
    return {'health_ms': self._health_ms, 'fresh_ms': self._fresh_ms,
            'call_ms': self._call_ms, 'right': self._right,
            'wrong': self._wrong, 'refused': self._refused,
            'failures': dict(self._failures)}

  def _check(self, channel, times, what):
    start = time.monotonic()
    try:
      answer = health_pb2_grpc.HealthStub(channel).Check(
          health_pb2.HealthCheckRequest(), timeout=DEADLINE_SECONDS)
      if answer.status != health_pb2.HealthCheckResponse.SERVING:
        self._failed(f'{what} NOT_SERVING')
    except grpc.RpcError as error:
      self._failed(f'{what} {error.code().name}')
    times.append((time.monotonic() - start) * 1e3)

  def _failed(self, what):
    with self._lock:
      self._failures[what] += 1

  def _kept(self, address, _):
    with open_channel(address) as channel:
      self._connect(channel)
      while not self._over.wait(HEALTH_PAUSE):
        self._check(channel, self._health_ms, 'health')

  def _fresh(self, address, _):
    while not self._over.wait(FRESH_PAUSE):
      with open_channel(address) as channel:
        self._check(channel, self._fresh_ms, 'new connection')

  def _calls(self, address, seed):
    rng = np.random.default_rng(seed)
    names = list(OPTIONS)
    with open_channel(address) as channel:
      client = Client(self._stubs, channel)
      self._connect(channel)
      while not self._over.wait(CALL_PAUSE):
        tensors = [rng.standard_normal(shape).astype(np.float32)
                   for shape in (QUERY, KEY, VALUE)]
        options = OPTIONS[names[rng.integers(len(names))]](rng)
        start = time.monotonic()
        try:
          answer = client.attention(*tensors, timeout=2 * DEADLINE_SECONDS,
                                    **options)
        except grpc.RpcError as error:
          refusal = Refusal(error)
          if refusal.retry_info is None:
            self._failed(f'call {refusal.code.name}')
          else:
            with self._lock:
              self._refused += 1
          continue
        took = (time.monotonic() - start) * 1e3
        expected, _ = reference.attention(*tensors,
                                          **expected_options(options))
        try:
          reference.assert_close(client.array(answer.output), expected,
                                 reference.error_bound(tensors[2]))
          right = True
        except AssertionError:
          right = False
        with self._lock:
          self._call_ms.append(took)
          self._right += right
          self._wrong += not right


def main():
  build, seed = sys.argv[1], int(sys.argv[2])
  generated = stubs.load(build)
  watch = None
  for line in sys.stdin:
    command, *arguments = line.split()
    if command == 'watch':
      fresh = 'fresh' in arguments
      watch = Watch(generated, [a for a in arguments if a != 'fresh'], seed,
                    fresh)
      watch.wait_connected()
      print('connected', flush=True)
    else:
      print(json.dumps(watch.report()), flush=True)


if __name__ == '__main__':
  main()
