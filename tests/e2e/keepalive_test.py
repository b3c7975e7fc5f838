"""Tests clients that ping. A call is silent while the server computes, so
clients, proxies and service meshes send pings to find out whether the server
is still there. A gRPC server with default settings ends the connection after a
few pings; attnd must not."""

import grpc
import numpy as np
import pytest

from support import http2, work
from support.client import Client
from support.raw_http2 import RawConnection, Reader, header_block
from support.relay import Relay
from support.server import Server, poll_until

# By default, gRPC servers end a connection at the third ping that comes too
# early.
PINGS = 6
KEEPALIVE = [
    ('grpc.keepalive_time_ms', 100),
    ('grpc.keepalive_timeout_ms', 60_000),
    ('grpc.keepalive_permit_without_calls', 1),
    # 0 means no limit. By default, a client sends only two pings without data.
    ('grpc.http2.max_pings_without_data', 0),
    ('grpc.http2.min_time_between_pings_ms', 100),
    # A call that is cut off has to fail, so gRPC must not retry it.
    ('grpc.enable_retries', 0),
    ('grpc.enable_http_proxy', 0),
    ('grpc.use_local_subchannel_pool', 1),
]


@pytest.fixture(scope='module')
def server(attnd):
  with Server(attnd) as running:
    yield running


@pytest.fixture(params=['tcp', 'unix'])
def pinging(request, server, stubs):
  """Returns a client that pings every 100 ms, and the relay that counts its
  pings."""
  with Relay(getattr(server, request.param)) as relay, \
      grpc.insecure_channel(relay.address, options=KEEPALIVE) as channel:
    yield Client(stubs, channel), relay


def unary(client, sequence):
  return client.stub.SelfAttention(client.self_request(sequence), timeout=600)


def stream(client, sequence):
  return client.stream(client.request(sequence, sequence, sequence),
                       chunk_bytes=1 << 20)


@pytest.mark.parametrize('call', [unary, stream])
def test_a_silent_call_outlives_pings(pinging, call):
  client, relay = pinging
  rows = work.rows_for(client, seconds=8)
  for _ in range(5):
    before = relay.pings
    answer = call(client, np.ones((1, rows, 1), np.float32))
    assert np.allclose(client.array(answer.output), 1)
    if relay.pings - before >= PINGS:
      break
    rows = min(2 * rows, 1 << 20)
  else:
    pytest.fail(f'fewer than {PINGS} pings in a call')
  assert relay.connections == 1


def test_pings_without_calls(pinging):
  client, relay = pinging
  work.refusal_of(client)  # this opens the connection
  before = relay.pings
  poll_until(lambda: relay.pings - before >= PINGS, 60, 'pings')
  assert work.refusal_of(client) is None
  assert relay.connections == 1


@pytest.mark.parametrize('calls', [0, 1])
def test_five_minutes_of_a_ping_a_second_at_once(server, connect, calls):
  """Sends 300 pings at once. No gRPC library sends as many."""
  request = work.endless_request(connect(server.tcp)).SerializeToString()
  with Reader() as reader, RawConnection(server.tcp, reader) as connection:
    for _ in range(calls):
      stream_id = connection.open(header_block('SelfAttention'))
      connection.send_data(stream_id, b'\0' + len(request).to_bytes(4, 'big') +
                           request, end=True)
    for _ in range(300):
      connection.send(http2.frame(http2.PING, bytes(8)))
    health = connection.open(header_block('/grpc.health.v1.Health/Check'))
    connection.send_data(health, http2.message_prefix(0), end=True)
    assert connection.wait_over(health, 60) == 0
    assert not connection.gone and not connection.over - {health}
