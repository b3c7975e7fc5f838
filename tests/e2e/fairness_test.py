"""One client cannot keep the others out, however much it asks for."""

import contextlib
import queue

import grpc
import numpy as np
import pytest

from support.client import Refusal
from support.relay import Relay
from support.server import Server, poll_until
from support.work import small_request

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
MIB = 1 << 20
SLOTS = 8
# 2 MiB that take far longer to compute than a test.
LONG = np.ones((2, 262144, 1), np.float32)


@contextlib.contextmanager
def held(calls):
  """Cancels the calls in the end."""
  try:
    yield calls
  finally:
    for call in calls:
      call.cancel()


def in_flight(client):
  return client.stub.GetServerInfo(
      client.pb.GetServerInfoRequest()).load.in_flight


def start_long(clients, count, sequence=LONG):
  """Starts calls, over the connections of all clients in turn. They have no
  deadline, because the server may refuse a call that would end too late."""
  return [clients[i % len(clients)].stub.SelfAttention.future(
      clients[0].self_request(sequence)) for i in range(count)]


def serves(client):
  return client.stub.SelfAttention(small_request(client), timeout=60)


def stream_refusal(client):
  """Returns the reason for which the server refuses a new stream, or None."""
  small = np.ones((1, 1, 4, 2), np.float32)
  try:
    client.stream(client.request(small, small, small), timeout=60)
    return None
  except grpc.RpcError as error:
    return Refusal(error).reason


@pytest.fixture(params=[1, 8], ids=lambda count: f'{count} connections')
def full(request, attnd, connect):
  """A server whose slots one client has taken, over so many connections. Returns
  the server, and a client with one of these connections."""
  with Server(attnd, f'--max-in-flight={SLOTS}', '--threads=1') as server:
    clients = [connect(server.tcp) for _ in range(request.param)]
    with held(start_long(clients, SLOTS)):
      poll_until(lambda: in_flight(clients[0]) == SLOTS, 60,
                 'all slots taken')
      yield server, clients[-1]


def test_another_client_gets_its_half_of_the_slots(full, connect, refused):
  server, first = full
  other = connect(server.unix)
  refusal = refused(lambda: serves(first))
  assert (refusal.code, refusal.reason) == (EXHAUSTED, 'TOO_MANY_REQUESTS')
  assert refusal.retry_info
  for _ in range(20):
    serves(other)
  with held(start_long([other], SLOTS // 2)):
    poll_until(lambda: in_flight(other) == SLOTS + SLOTS // 2, 60,
               'half of the slots for the other client')
    refusal = refused(lambda: serves(other))
    assert refusal.reason == 'TOO_MANY_REQUESTS'
    assert 'which 2 clients share; 4 are of this client' in refusal.message


def test_a_third_client_gets_in_beside_two(full, connect):
  server, _ = full
  other = connect(server.unix)
  with held(start_long([other], SLOTS // 2)), \
      Relay(server.tcp, source='127.0.0.2') as relay:
    poll_until(lambda: in_flight(other) == SLOTS + SLOTS // 2, 60,
               'half of the slots for the other client')
    serves(connect(relay.address))


def test_all_connections_of_a_host_are_one_client(full, connect, refused):
  server, _ = full
  assert refused(lambda: serves(connect(server.tcp))).reason == (
      'TOO_MANY_REQUESTS')


def test_all_clients_of_the_unix_socket_are_one_client(attnd, connect, refused):
  with Server(attnd, '--max-in-flight=1', '--threads=1') as server:
    first = connect(server.unix)
    with held(start_long([first], 1)):
      poll_until(lambda: in_flight(first) == 1, 60, 'the slot taken')
      assert refused(lambda: serves(connect(server.unix))).reason == (
          'TOO_MANY_REQUESTS')
      serves(connect(server.tcp))


def test_memory_stays_free_for_a_client_of_the_last_minute(attnd, connect):
  with Server(attnd, f'--memory-budget-bytes={128 * MIB}',
              '--threads=1') as server:
    greedy, other = connect(server.tcp), connect(server.unix)
    serves(other)
    calls = []
    half_a_mib = np.ones((1, 131072, 1), np.float32)
    with held(calls):

      def full():
        calls.extend(start_long([greedy], 8, half_a_mib))
        return any(call.done() and call.code() == EXHAUSTED for call in calls)

      poll_until(full, 60, 'a refusal for lack of memory')
      # 4 MiB each for the message, the query and the output, which is more than
      # the last call of the greedy client can have left by chance.
      large = np.ones((1, 16384, 64), np.float32)
      for _ in range(5):
        other.attention(large, large[:, :64], large[:, :64], timeout=60)


def test_streams_without_a_header_leave_room_for_others(attnd, connect):
  with Server(attnd, f'--max-in-flight={SLOTS}') as server:
    greedy, other = connect(server.tcp), connect(server.unix)
    ends = queue.SimpleQueue()

    def nothing():
      ends.get()
      yield from ()

    streams = []

    def full():
      # One more each time, because the call that asks can have a place when a
      # stream arrives, which is then refused.
      streams.append(greedy.stub.AttentionStream(nothing(), timeout=600))
      return stream_refusal(greedy) == 'TOO_MANY_REQUESTS'

    try:
      poll_until(full, 60, 'all places of streams taken')
      assert stream_refusal(other) is None
    finally:
      for stream in streams:
        ends.put(None)
        stream.cancel()
