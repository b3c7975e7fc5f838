"""The server refuses what does not fit, before it uses memory for it."""

import concurrent.futures
import contextlib
import os
import threading

import grpc
import numpy as np
import pytest

from support import http2
from support.client import Client
from support.server import Server, open_channel

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
MIB = 1 << 20


def fits(client):
  """Checks that the server still serves."""
  small = np.ones((4, 8), np.float32)
  client.attention(small, small, small, timeout=60)


@pytest.fixture(scope='module')
def tight(attnd, stubs):
  """A client of a server with a budget of 8 MiB and messages of at most 2
  MiB."""
  with Server(attnd, f'--memory-budget-bytes={8 * MIB}',
              f'--max-message-bytes={2 * MIB}', '--threads=1') as server:
    with open_channel(server.tcp) as channel:
      yield Client(stubs, channel)


def test_info_tells_the_limits(tight):
  info = tight.stub.GetServerInfo(tight.pb.GetServerInfoRequest())
  assert info.memory_budget_bytes == 8 * MIB
  assert info.max_receive_message_bytes == 2 * MIB


@pytest.mark.parametrize('slots, streams', [(1, 1024), (5000, 10000),
                                            (50_000, 16384)])
def test_a_connection_has_so_many_calls_open(attnd, slots, streams):
  max_concurrent_streams = 3
  # 2 GiB of this are for arriving messages.
  with Server(attnd, f'--max-in-flight={slots}',
              f'--memory-budget-bytes={4096 * MIB}') as server, \
      http2.Connection(server.tcp) as connection:
    assert connection.settings[max_concurrent_streams] == streams


def test_a_client_may_ping_while_it_waits_for_an_answer(attnd):
  watch = http2.request_headers('/grpc.health.v1.Health/Watch')
  empty = http2.message_prefix(0)
  with Server(attnd) as server, http2.Connection(server.tcp) as connection:
    connection.send(
        http2.frame(http2.HEADERS, watch, http2.END_HEADERS, http2.STREAM) +
        http2.frame(http2.DATA, empty, http2.END_STREAM, http2.STREAM))
    while not connection.data_bytes[http2.STREAM]:
      connection.take_frames(60)
      assert not connection.closed
    # The limit of gRPC is three, unless something else is sent in between. The
    # server processes frames in order, so a later call shows the outcome.
    connection.send(http2.frame(http2.PING, bytes(8)) * 20 +
                    http2.frame(http2.HEADERS, watch, http2.END_HEADERS, 3) +
                    http2.frame(http2.DATA, empty, http2.END_STREAM, 3))
    while not connection.data_bytes[3]:
      connection.take_frames(60)
      assert not connection.closed


def test_memory_budget(attnd, stubs, refused):
  with Server(attnd, f'--memory-budget-bytes={8 * MIB}') as server, \
      open_channel(server.tcp) as channel:
    client = Client(stubs, channel)
    large = np.ones((1, 16384, 64), np.float32)  # 4 MiB each
    refusal = refused(lambda: client.attention(large, large, large))
    assert (refusal.code, refusal.reason) == (EXHAUSTED, 'MEMORY_BUDGET')
    # The call would not fit into an idle server either, so waiting does not
    # help.
    assert refusal.retry_info is None
    assert refusal.retry_pushback == '-1'
    fits(client)


def test_the_largest_budget(attnd, stubs, refused):
  # Address sanitizer would end the server if the system has no memory.
  asan = {'ASAN_OPTIONS': 'allocator_may_return_null=1:detect_leaks=1'}
  with Server(attnd, f'--memory-budget-bytes={2**63 - 1}',
              environment=asan) as server, \
      open_channel(server.tcp) as channel:
    client = Client(stubs, channel)
    large = np.ones((1, 8192, 64), np.float32)  # 2 MiB each
    for _ in range(3):
      client.attention(large, large[:, :64], large[:, :64])
    # The budget admits a call for which no machine has memory.
    pb = client.pb
    huge = pb.Tensor(dtype=pb.DATA_TYPE_F32, shape=[2**20, 2**28, 512])
    one = pb.Tensor(dtype=pb.DATA_TYPE_F32, shape=[1, 1, 512])
    refusal = refused(lambda: list(client.stub.AttentionStream(iter([
        pb.AttentionStreamRequest(header=pb.AttentionRequest(
            query=huge, key=one, value=one))]))))
    assert refusal.code == EXHAUSTED, refusal
    fits(client)


def test_a_request_above_the_message_limit(tight, refused):
  large = np.ones((2 * MIB // 4, 1), np.float32)
  refusal = refused(lambda: tight.attention(large, large[:1], large[:1]))
  assert refusal.code == EXHAUSTED
  fits(tight)


def test_a_response_above_the_message_limit(tight, refused):
  # 1 MiB of query rows of one number, each of which is answered with four
  # numbers.
  query = np.ones((MIB // 4, 1), np.float32)
  key, value = np.ones((1, 1), np.float32), np.ones((1, 4), np.float32)
  refusal = refused(lambda: tight.attention(query, key, value))
  assert (refusal.code, refusal.reason) == (EXHAUSTED, 'MESSAGE_TOO_LARGE')
  fits(tight)


def test_shapes_alone_cannot_make_the_server_allocate(client, refused):
  """A tiny message whose shapes claim terabytes is refused because of its byte
  count."""
  pb = client.pb
  claim = pb.Tensor(dtype=pb.DATA_TYPE_F32, shape=[1, 1, 1 << 36, 64],
                    data=b'\0' * 64)
  refusal = refused(lambda: client.stub.SelfAttention(
      pb.SelfAttentionRequest(sequence=claim), timeout=60))
  assert refusal.code in (grpc.StatusCode.INVALID_ARGUMENT, EXHAUSTED)
  fits(client)


def test_benchmark_beyond_its_limit(client, refused):
  pb = client.pb
  info = client.stub.GetServerInfo(pb.GetServerInfoRequest())
  refusal = refused(lambda: list(client.stub.Benchmark(
      pb.BenchmarkRequest(num_vectors=info.max_benchmark_vectors + 1))))
  assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT
  assert refusal.field == 'num_vectors'
  assert str(info.max_benchmark_vectors) in refusal.description


def peak_mib(server):
  """Returns the peak of the memory of the server so far."""
  with open(f'/proc/{server.process.pid}/status', encoding='ascii') as status:
    (line,) = (l for l in status if l.startswith('VmHWM:'))
  return int(line.split()[1]) >> 10


def test_half_received_messages_and_requests_fit_together(attnd, connect):
  """Messages that are not admitted yet have a share of memory that is separate
  from that of requests."""
  budget, message = 512, 8
  arriving, own = 16 * message, 256
  with contextlib.ExitStack() as stack:
    server = stack.enter_context(Server(
        attnd, f'--memory-budget-bytes={budget * MIB}',
        f'--max-message-bytes={message * MIB}', '--max-benchmark-seconds=0'))
    client = connect(server.tcp)
    stalled = [stack.enter_context(http2.Connection(server.tcp))
               for _ in range(budget // message)]
    for connection in stalled:
      connection.begin_call('/attnd.v1.AttentionService/Attention',
                            message * MIB)
      connection.send_data(bytes(message * MIB - 65536))
    for connection in stalled:
      connection.take_frames()
    going_on = [c for c in stalled if not c.reset]
    assert arriving // message // 2 < len(going_on) <= arriving // message + 2
    # The memory has room for other clients, whose calls gRPC could also end.
    for connection in going_on[:3]:
      connection.close()
    # Tensors of 480 MiB, whose pages are all touched.
    events = list(client.stub.Benchmark(client.pb.BenchmarkRequest(
        num_vectors=1024, dimensions=128, num_heads=240, repetitions=1),
                                        timeout=300))
    assert events[-1].HasField('result')
    # Sanitizers use several bytes for each byte of the server.
    if not os.environ.get('ATTND_SANITIZE'):
      assert peak_mib(server) < budget + arriving + own
    fits(client)


def test_a_full_share_of_arriving_messages_ends_calls_alone(attnd, stubs):
  """Messages that other clients abandon while gRPC waits for memory do no
  harm."""
  message = 8
  half_sent = []
  over = threading.Event()

  def fill(server):
    while not over.is_set():
      try:
        connection = http2.Connection(server.tcp)
        half_sent.append(connection)
        connection.begin_call('/attnd.v1.AttentionService/Attention',
                              message * MIB)
        connection.send_data(bytes(message * MIB - 65536))
        if len(half_sent) > 30:
          half_sent.pop(0).close()
      except (OSError, ValueError):
        pass  # the server or the test has ended it

  def call(server):
    with open_channel(server.tcp) as channel:
      client = Client(stubs, channel)
      rows = np.ones((MIB // 4, 4), np.float32)  # workers free its message
      while not over.is_set():
        try:
          client.attention(rows, rows[:1], rows[:1, :1], timeout=60)
        except grpc.RpcError as error:
          assert error.code() in (EXHAUSTED, grpc.StatusCode.UNAVAILABLE)

  with Server(attnd, f'--memory-budget-bytes={64 * MIB}',
              f'--max-message-bytes={message * MIB}') as server:
    with concurrent.futures.ThreadPoolExecutor() as pool:
      work = [pool.submit(fill, server), pool.submit(fill, server)]
      work += [pool.submit(call, server) for _ in range(4)]
      concurrent.futures.wait(work, timeout=8,
                              return_when=concurrent.futures.FIRST_EXCEPTION)
      over.set()
      for connection in half_sent:
        connection.close()
      for done in work:
        done.result()
    with open_channel(server.tcp) as channel:
      fits(Client(stubs, channel))
