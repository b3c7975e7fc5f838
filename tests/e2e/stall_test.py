"""Tests clients that make the server wait for a message, for the end of a
message, or until they read. Such a client cannot keep a slot, memory or a call
for longer than --stream-idle-timeout."""

import time

import grpc
import numpy as np
import pytest

from support import http2, work
from support.client import Refusal
from support.problems import normal
from support.server import Server, poll_until
from stream_test import Upload, hold

SERVICE = '/attnd.v1.AttentionService/'
MIB = 1 << 20
# A bound for what the server does within a timeout and a quarter.
ENDED_SECONDS = 60


def read_slowly(connection, bytes_per_second):
  """Reads the first stream to its end, at this pace."""
  limit = time.monotonic() + ENDED_SECONDS
  while not connection.ended:
    assert time.monotonic() < limit, 'the call goes on'
    connection.grant(bytes_per_second // 4)
    step = time.monotonic() + 0.25
    while time.monotonic() < step:
      connection.take_frames(0.05)


def small_question_of_a_large_answer(client, megabytes):
  """Returns a request of a few KB whose answer has about this many
  megabytes."""
  rows, width = megabytes * 256, 1024
  return client.request(np.ones((rows, 1), np.float32),
                        np.ones((1, 1), np.float32),
                        np.ones((1, width), np.float32)).SerializeToString()


def test_answers_that_nobody_takes_give_back_the_budget(attnd, connect):
  with Server(attnd, f'--memory-budget-bytes={64 * MIB}',
              '--stream-idle-timeout=1') as server:
    client = connect(server.tcp)
    large = np.ones((2 * MIB, 2), np.float32)  # 16 MiB
    one = np.ones((1, 2), np.float32)

    def refusal_of_a_large_call():
      try:
        client.attention(large, one, one[:, :1])
      except grpc.RpcError as error:
        return Refusal(error)
      return None

    question = small_question_of_a_large_answer(client, 14)
    with http2.Connection(server.tcp, window=0) as silent:
      streams = range(1, 9, 2)
      for stream in streams:
        silent.call(SERVICE + 'Attention', question, stream)
      # All four answers wait.
      refusal = poll_until(refusal_of_a_large_call, ENDED_SECONDS, 'a refusal')
      assert refusal.reason == 'MEMORY_BUDGET'
      silent.take_until(lambda: silent.ended.issuperset(streams),
                        ENDED_SECONDS, 'the end of the calls')
      poll_until(lambda: refusal_of_a_large_call() is None, ENDED_SECONDS,
                 'the budget of the answers')
      for stream in streams:
        assert silent.data_bytes[stream] == 0
        assert b'--stream-idle-timeout' in silent.headers[stream]


def test_a_client_that_does_not_read_does_not_delay_the_end(attnd, connect):
  with Server(attnd, '--drain-timeout=1') as server:
    client = connect(server.tcp)
    question = small_question_of_a_large_answer(client, 64)

    def answer_waits():
      load = client.stub.GetServerInfo(client.pb.GetServerInfoRequest(),
                                       timeout=60).load
      # The call has given its slot back, and not its answer.
      return load.in_flight <= 1 and load.reserved_bytes > 32 * MIB

    # The client accepts the whole answer by HTTP/2, and reads nothing, so that
    # gRPC waits for the socket.
    with http2.Connection(server.tcp, window=2**31 - 1) as silent:
      silent.call(SERVICE + 'Attention', question)
      poll_until(answer_waits, ENDED_SECONDS, 'an answer that waits')
      server.signal()
      assert server.wait() == 0
    assert 'still open a second after the end of the drain' in server.log()


def test_small_answers_that_nobody_takes_are_ended_too(attnd, connect):
  with Server(attnd, '--stream-idle-timeout=1') as server:
    pb = connect(server.tcp).pb
    client = connect(server.tcp)
    x = np.ones((4, 4), np.float32)
    attention = client.request(x, x, x).SerializeToString()
    estimate = pb.MemoryEstimateRequest(seq_len=4,
                                        dimensions=4).SerializeToString()
    with http2.Connection(server.tcp, window=0) as silent:
      streams = range(1, 241, 6)
      for stream in streams:
        silent.call(SERVICE + 'Attention', attention, stream)
        silent.call(SERVICE + 'MemoryEstimate', estimate, stream + 2)
        silent.call(SERVICE + 'GetServerInfo', b'', stream + 4)
      silent.take_until(lambda: len(silent.ended) == 3 * len(streams),
                        ENDED_SECONDS, 'the end of the calls')
      assert not silent.data_bytes
    assert work.refusal_of(client) is None


def test_a_slow_reader_gets_its_answer(attnd, connect):
  with Server(attnd, '--stream-idle-timeout=2') as server:
    client = connect(server.tcp)
    question = client.request(np.ones((512, 1), np.float32),
                              np.ones((1, 1), np.float32),
                              np.ones((1, 256), np.float32))
    with http2.Connection(server.tcp, window=0) as slow:
      slow.call(SERVICE + 'Attention', question.SerializeToString())
      # The client reads 100 KiB in each timeout.
      read_slowly(slow, 50 << 10)
      assert slow.data_bytes[http2.STREAM] > MIB // 2
      assert b'grpc-status\x010' in slow.headers[http2.STREAM]


def test_a_reader_of_a_few_bytes_is_ended(attnd, connect):
  with Server(attnd, '--stream-idle-timeout=1') as server:
    client = connect(server.tcp)
    question = small_question_of_a_large_answer(client, 1)
    with http2.Connection(server.tcp, window=0) as slow:
      slow.call(SERVICE + 'Attention', question)
      read_slowly(slow, 4 << 10)
      assert slow.data_bytes[http2.STREAM] < MIB // 2
      assert b'--stream-idle-timeout' in slow.headers[http2.STREAM]


def runs_a_benchmark(client):
  """Returns False if another benchmark runs or no slot is free."""
  try:
    *_, last = client.stub.Benchmark(client.pb.BenchmarkRequest(
        num_vectors=1, dimensions=1, repetitions=1), timeout=60)
  except grpc.RpcError as error:
    assert Refusal(error).reason == 'TOO_MANY_REQUESTS'
    return False
  return last.HasField('result')


def run_unread_benchmarks(client, connection, count):
  """Runs benchmarks on a connection that reads no messages. Returns the
  streams of those that were admitted.

  The benchmarks run one after the other. The server refuses others meanwhile.
  A refusal is not a message, and the connection reads it.
  """
  request = client.pb.BenchmarkRequest(
      num_vectors=1, dimensions=1, repetitions=1).SerializeToString()
  opened = []

  def let_in():
    return [s for s in opened if b'request' not in connection.headers[s]
            and b'another benchmark' not in connection.headers[s]]

  limit = time.monotonic() + ENDED_SECONDS
  while len(let_in()) < count:
    assert time.monotonic() < limit, 'no slot for the next'
    opened.append(2 * len(opened) + 1)
    connection.call(SERVICE + 'Benchmark', request, opened[-1])
    connection.take_frames(0.2)
  # When this benchmark has run, all others have run or were refused.
  poll_until(lambda: runs_a_benchmark(client), ENDED_SECONDS, 'a benchmark')
  connection.take_frames(0.2)
  return let_in()


def test_benchmarks_that_nobody_reads_give_back_their_slots(attnd, connect):
  slots = 2
  with Server(attnd, f'--max-in-flight={slots}', '--threads=1') as server:
    client = connect(server.tcp)
    with http2.Connection(server.tcp, window=0) as silent:
      # This is much shorter than --stream-idle-timeout.
      let_in = run_unread_benchmarks(client, silent, 2 * slots)
      assert len(let_in) > slots
      assert not silent.ended.intersection(let_in)


def test_benchmarks_that_nobody_reads_are_ended(attnd, connect):
  with Server(attnd, '--stream-idle-timeout=1', '--threads=1') as server:
    client = connect(server.tcp)
    with http2.Connection(server.tcp, window=0) as silent:
      let_in = run_unread_benchmarks(client, silent, 2)
      assert let_in
      silent.take_until(lambda: silent.ended.issuperset(let_in),
                        ENDED_SECONDS, 'the end of the calls')
      for stream in let_in:
        assert b'--stream-idle-timeout' in silent.headers[stream]


def drip(upload, chunk, seconds):
  """Sends a byte from time to time until the server ends the stream."""
  limit = time.monotonic() + ENDED_SECONDS
  at = 0
  while not upload.call.done():
    assert time.monotonic() < limit, 'the stream goes on'
    upload.send(chunk(at))
    at += 1
    time.sleep(seconds)  # the pace of this client
  upload.end()


def test_a_stream_of_single_bytes_is_ended(attnd, connect, rng):
  with Server(attnd, '--max-in-flight=1', '--stream-idle-timeout=1') as server:
    client = connect(server.tcp)
    pb = client.pb
    upload = hold(client, client.request(
        *(normal(rng, 1, 1000, 64) for _ in range(3))), messages=1)
    data = upload.messages[1].chunk.data
    drip(upload, lambda at: pb.AttentionStreamRequest(chunk=pb.TensorChunk(
        role=pb.TENSOR_ROLE_QUERY, offset_bytes=at, data=data[at:at + 1])),
         seconds=0.2)
    with pytest.raises(grpc.RpcError) as caught:
      next(upload.call)
    refusal = Refusal(caught.value)
    assert refusal.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert (refusal.reason, refusal.field) == ('STREAM_IDLE', 'chunk')
    work.wait_until_free(client)


def test_a_slow_stream_that_moves_enough_is_served(attnd, connect, rng):
  with Server(attnd, '--stream-idle-timeout=1') as server:
    client = connect(server.tcp)
    # The client sends 96 KiB in each timeout, and small tensors after the large
    # one.
    request = client.request(normal(rng, 1, 1024, 64), normal(rng, 1, 2, 64),
                             normal(rng, 1, 2, 64))
    expected = client.stub.Attention(request, timeout=60)

    def slowly():
      for message in client.messages(request, chunk_bytes=24 << 10):
        yield message
        time.sleep(0.25)  # the pace of this client

    got = client.answer(client.stub.AttentionStream(slowly(), timeout=60))
    assert got.output == expected.output


def test_a_stream_read_by_few_bytes_is_ended(attnd, connect):
  with Server(attnd, '--stream-idle-timeout=1') as server:
    client = connect(server.tcp)
    request = client.request(np.ones((1 << 18, 1), np.float32),
                             np.ones((1, 1), np.float32),
                             np.ones((1, 4), np.float32))  # answers 4 MiB
    with http2.Connection(server.tcp, window=4096) as slow:
      slow.open_stream(SERVICE + 'AttentionStream')
      for message in client.messages(request):
        data = message.SerializeToString()
        slow.send_data(http2.message_prefix(len(data)) + data)
      slow.end()
      read_slowly(slow, 4 << 10)
      assert slow.data_bytes[http2.STREAM] < MIB
      assert b'--stream-idle-timeout' in slow.headers[http2.STREAM]
      assert work.refusal_of(client) is None


def test_a_stream_read_slowly_gets_its_answer(attnd, connect):
  with Server(attnd, '--stream-idle-timeout=2') as server:
    client = connect(server.tcp)
    request = client.request(np.ones((1 << 16, 1), np.float32),
                             np.ones((1, 1), np.float32),
                             np.ones((1, 2), np.float32))  # answers 512 KiB
    with http2.Connection(server.tcp, window=0) as slow:
      slow.open_stream(SERVICE + 'AttentionStream')
      for message in client.messages(request):
        data = message.SerializeToString()
        slow.send_data(http2.message_prefix(len(data)) + data)
      slow.end()
      # The client sends 100 KiB in each timeout, of a chunk that takes five
      # timeouts.
      read_slowly(slow, 50 << 10)
      assert slow.data_bytes[http2.STREAM] > 512 << 10
      assert b'grpc-status\x010' in slow.headers[http2.STREAM]


def test_streams_without_a_header_are_ended(attnd, connect):
  with Server(attnd, '--max-in-flight=2', '--stream-idle-timeout=1') as server:
    client = connect(server.tcp)
    with http2.Connection(server.tcp) as silent:
      for stream in (1, 3):
        silent.open_stream(SERVICE + 'AttentionStream', stream)
      # The client sends a header that does not end.
      silent.send_data(http2.message_prefix(1000) + b'\n', 3)
      silent.take_until(lambda: len(silent.ended) == 2, ENDED_SECONDS,
                        'the end of the streams')
      assert b'expected a header within 1s' in silent.headers[1]
      x = np.ones((4, 4), np.float32)
      poll_until(lambda: streams(client, client.request(x, x, x)),
                 ENDED_SECONDS, 'a place')


def streams(client, request):
  try:
    return client.stream(request)
  except grpc.RpcError as error:
    assert Refusal(error).reason == 'TOO_MANY_REQUESTS'
    return None
