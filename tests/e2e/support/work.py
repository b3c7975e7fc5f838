"""Calls that take long to compute but are small to send, for tests that stop
or watch them.

With a head dimension of one, a row has only its exponentials to compute, and
four bytes.
"""

import time

import grpc
import numpy as np

from support.client import Refusal
from support.server import poll_until

# 16 MiB that need hundreds of seconds to compute, so that only a stop ends the
# call within a test.
ENDLESS = (16, 262144, 1)
# The time for "at once". It allows for slow builds on busy machines, and is
# much shorter than ENDLESS takes.
AT_ONCE_SECONDS = 20


def small_request(client):
  return client.self_request(np.ones((4, 2), np.float32))


def endless_request(client):
  return client.self_request(np.ones(ENDLESS, np.float32))


def rows_for(client, seconds):
  """Returns how many rows make a self attention take about this long on this
  server."""
  rows = 8192
  sequence = np.ones((1, rows, 1), np.float32)
  start = time.monotonic()
  client.stub.SelfAttention(client.self_request(sequence), timeout=600)
  took = max(time.monotonic() - start, 1e-3)
  return min(int(rows * (seconds / took)**0.5), 1 << 20)


def refusal_of(client):
  """Returns why the server refuses a small call now, or None if it serves the
  call."""
  try:
    client.stub.SelfAttention(small_request(client), timeout=60)
    return None
  except grpc.RpcError as error:
    return Refusal(error)


def hold_slot(client, start):
  """Calls start() until its call has the slot of a server with
  --max-in-flight=1.

  A small call that checks this can be in the slot when the call arrives, which
  is then refused. Both come from one client as the server counts clients: both
  over TCP from one address, or both over the unix socket.
  """

  def attempt():
    call = start()

    def settled():
      refusal = refusal_of(client)
      assert refusal is None or refusal.reason == 'TOO_MANY_REQUESTS', refusal
      return call.done() or refusal is not None

    poll_until(settled, 60, 'a call in the only slot')
    if not call.done():
      return call
    assert call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, call.code()
    return None

  return poll_until(attempt, 60, 'a call in the only slot')


def wait_until_free(client):
  """Waits until the slot of a server with --max-in-flight=1 is free."""
  poll_until(lambda: refusal_of(client) is None, AT_ONCE_SECONDS,
             'the only slot given back')
