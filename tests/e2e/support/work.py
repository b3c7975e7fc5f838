"""Calls that take long to compute and little to send, to stop and to watch.

With one head dimension a row costs its exponentials and four bytes.
"""

import time

import grpc
import numpy as np

from support.client import Refusal
from support.server import poll_until

# Hundreds of seconds of work in 16 MiB: only a stop ends it within a test.
ENDLESS = (16, 262144, 1)
# "At once", for slow builds on busy machines; far below ENDLESS.
AT_ONCE_SECONDS = 20


def small_request(client):
  return client.self_request(np.ones((4, 2), np.float32))


def endless_request(client):
  return client.self_request(np.ones(ENDLESS, np.float32))


def rows_for(client, seconds):
  """Rows that make a self attention of about so long on this server."""
  rows = 8192
  sequence = np.ones((1, rows, 1), np.float32)
  start = time.monotonic()
  client.stub.SelfAttention(client.self_request(sequence), timeout=600)
  took = max(time.monotonic() - start, 1e-3)
  return min(int(rows * (seconds / took)**0.5), 1 << 20)


def refusal_of(client):
  """Why a small call is refused now; None where it is served."""
  try:
    client.stub.SelfAttention(small_request(client), timeout=60)
    return None
  except grpc.RpcError as error:
    return Refusal(error)


def hold_slot(client, start):
  """For a server with --max-in-flight=1: start() until its call has the slot.

  A probe may be in the slot when the call comes, which is refused then.
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
  """For a server with --max-in-flight=1: until the slot is given back."""
  poll_until(lambda: refusal_of(client) is None, AT_ONCE_SECONDS,
             'the only slot given back')
