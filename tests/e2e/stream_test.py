"""Tests tensors in chunks. The answer is that of a unary call, however the
tensors are divided, and the server returns what it held, however a client
ends."""

import queue
import signal
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest

from support import problems, work
from support.client import Client, Refusal
from support.problems import normal
from support.server import Server, open_channel, poll_until

INVALID = grpc.StatusCode.INVALID_ARGUMENT
MIB = 1 << 20


def small_messages(attnd, slots):
  return Server(attnd, '--max-message-bytes=65536', f'--max-in-flight={slots}',
                f'--memory-budget-bytes={512 * MIB}')


@pytest.fixture(scope='module')
def small(attnd):
  """A server with small messages and few slots, so that a leak shows soon."""
  with small_messages(attnd, slots=4) as running:
    yield running


@pytest.fixture(scope='module')
def one_slot(attnd):
  with small_messages(attnd, slots=1) as running:
    yield running


@pytest.fixture(params=['tcp', 'unix'])
def streams(request, small, connect):
  return connect(getattr(small, request.param))


@pytest.fixture(params=['tcp', 'unix'])
def slot_address(request, one_slot):
  """An address of a server that admits one call of a client at a time."""
  return getattr(one_slot, request.param)


@pytest.fixture
def slot(slot_address, connect):
  """A client of that server."""
  return connect(slot_address)


class Upload:
  """A stream whose messages are sent when the test says so."""

  def __init__(self, client, request=None, chunk_bytes=1000, timeout=300):
    self._queue = queue.Queue()
    self.messages = list(client.messages(request, chunk_bytes)) \
        if request is not None else []
    self.call = client.stub.AttentionStream(
        iter(self._queue.get, None), timeout=timeout)

  def send(self, *messages):
    for message in messages:
      self._queue.put(message)

  def end(self):
    self._queue.put(None)


def hold(client, request, messages=2, **how):
  """Returns an upload that was admitted and has sent its first messages.

  An earlier call can return its slot after its answer has arrived, so a
  refusal because no slot is free is retried.
  """

  def attempt():
    upload = Upload(client, request, **how)
    upload.send(*upload.messages[:messages])
    try:
      assert next(upload.call).HasField('header')
    except grpc.RpcError as error:
      upload.end()
      if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
        raise
      return None
    return upload

  return poll_until(attempt, 60, 'a free slot')


def test_server_info_says_so(streams):
  info = streams.stub.GetServerInfo(streams.pb.GetServerInfoRequest())
  assert 'stream' in info.features


@pytest.mark.parametrize('name', problems.OPTIONS)
def test_the_bits_of_a_unary_call(streams, client, tensors, rng, name):
  request = client.request(*tensors, return_lse=True,
                           **problems.OPTIONS[name](rng))
  expected = client.stub.Attention(request, timeout=300)
  got = streams.stream(request, chunk_bytes=int(rng.integers(1, 500)))
  assert got.output == expected.output
  assert got.lse == expected.lse


def test_tensors_far_above_the_message_limit(streams, client, rng):
  query, key, value = (normal(rng, 4, 4096, 64) for _ in range(3))  # 4 MiB
  request = client.request(query, key, value)
  expected = client.stub.Attention(request, timeout=300)
  got = streams.stream(request, chunk_bytes=60000)
  assert got.output.data == expected.output.data
  assert list(got.output.shape) == [4, 4096, 64]


def test_an_empty_tensor(streams):
  empty, some = np.ones((0, 4), np.float32), np.ones((3, 4), np.float32)
  got = streams.stream(streams.request(empty, some, some))
  assert list(got.output.shape) == [0, 4] and got.output.data == b''


def test_two_at_once(attnd, stubs, client, rng):
  requests = [client.request(*(normal(rng, 1024, 64) for _ in range(3)))
              for _ in range(2)]
  expected = [client.stub.Attention(r, timeout=300) for r in requests]
  with Server(attnd, '--max-message-bytes=65536') as server, \
      open_channel(server.tcp) as channel:
    both = Client(stubs, channel)
    uploads = [Upload(both, r, chunk_bytes=50000) for r in requests]
    for pair in zip(*(u.messages for u in uploads)):
      for upload, message in zip(uploads, pair):
        upload.send(message)
    for upload in uploads:
      upload.end()
    for upload, answer in zip(uploads, expected):
      assert both.answer(upload.call).output == answer.output


@pytest.fixture
def request_of_three(client, rng):
  return client.request(*(normal(rng, 100, 8) for _ in range(3)))


MISTAKES = {
    'header': lambda pb, sent: sent[1:],
    'chunk': lambda pb, sent: sent[:2] + [pb.AttentionStreamRequest()],
    'chunk.role': lambda pb, sent: [sent[0], pb.AttentionStreamRequest(
        chunk=pb.TensorChunk(role=pb.TENSOR_ROLE_BIAS, data=b'1234'))],
    'chunk.offset_bytes': lambda pb, sent: [sent[0], sent[2]],
    'chunk.data': lambda pb, sent: [sent[0], pb.AttentionStreamRequest(
        chunk=pb.TensorChunk(role=pb.TENSOR_ROLE_QUERY, data=b'x' * 4000))],
    'header.value': lambda pb, sent: sent[:-1],
    'header.query.shape': lambda pb, sent: [pb.AttentionStreamRequest(
        header=pb.AttentionRequest(
            query=pb.Tensor(dtype=pb.DATA_TYPE_F32, shape=[8]),
            key=sent[0].header.key, value=sent[0].header.value))],
}


@pytest.mark.parametrize('field', MISTAKES)
def test_mistakes_are_named(streams, request_of_three, refused, field):
  sent = list(streams.messages(request_of_three, 1000))
  refusal = refused(lambda: list(streams.stub.AttentionStream(
      iter(MISTAKES[field](streams.pb, sent)), timeout=60)))
  assert (refusal.code, refusal.field) == (INVALID, field), refusal
  assert refusal.domain == 'attnd'


def test_more_after_the_end(streams, request_of_three, refused):
  sent = list(streams.messages(request_of_three, 1000))
  refusal = refused(lambda: list(streams.stub.AttentionStream(
      iter(sent + sent[-1:]), timeout=60)))
  assert (refusal.code, refusal.field) == (INVALID, 'chunk.offset_bytes')


def test_what_does_not_fit_is_refused_before_a_chunk(streams, refused):
  pb = streams.pb
  large = pb.Tensor(dtype=pb.DATA_TYPE_F32, shape=[1, 1 << 20, 128])
  header = pb.AttentionRequest(query=large, key=large, value=large)
  upload = Upload(streams)
  upload.send(pb.AttentionStreamRequest(header=header))
  refusal = refused(lambda: next(upload.call))
  upload.end()
  assert refusal.code == grpc.StatusCode.RESOURCE_EXHAUSTED
  assert refusal.reason == 'MEMORY_BUDGET'


def test_streams_without_a_header_are_counted_too(streams, request_of_three):
  # The server has four slots, and four places for streams without a header.
  uploads = [Upload(streams) for _ in range(5)]
  ended = poll_until(lambda: [u for u in uploads if u.call.done()], 60,
                     'the end of one too many')
  assert len(ended) == 1
  with pytest.raises(grpc.RpcError) as caught:
    next(ended[0].call)
  assert Refusal(caught.value).reason == 'TOO_MANY_REQUESTS'
  # These streams do not block admitted calls or calls of one message.
  assert work.refusal_of(streams) is None
  for upload in uploads:
    upload.call.cancel()
    upload.end()
  poll_until(lambda: streams_are_served(streams, request_of_three), 60,
             'their places')


def streams_are_served(client, request):
  try:
    return client.stream(request)
  except grpc.RpcError as error:
    assert Refusal(error).reason == 'TOO_MANY_REQUESTS'
    return None


def test_cancel_while_uploading(slot, request_of_three):
  upload = hold(slot, request_of_three)
  assert work.refusal_of(slot).reason == 'TOO_MANY_REQUESTS'
  upload.call.cancel()
  work.wait_until_free(slot)


def test_a_deadline_ends_a_silent_client(slot, request_of_three):
  upload = hold(slot, request_of_three, timeout=3)
  with pytest.raises(grpc.RpcError) as caught:
    next(upload.call)
  upload.end()
  assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
  work.wait_until_free(slot)


def test_the_server_ends_a_silent_client(attnd, connect, request_of_three):
  with Server(attnd, '--max-in-flight=1', '--stream-idle-timeout=1') as server:
    client = connect(server.tcp)
    # This is much earlier than by default.
    upload = hold(client, request_of_three, timeout=30)
    with pytest.raises(grpc.RpcError) as caught:
      next(upload.call)
    upload.end()
    refusal = Refusal(caught.value)
    assert refusal.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert (refusal.reason, refusal.field) == ('STREAM_IDLE', 'chunk')
    work.wait_until_free(client)


def hold_unread(client):
  """Returns a stream of which the client reads only one chunk."""
  # This is more than the windows of the connection hold, so the server waits to
  # write.
  upload = hold(client, client.request(
      np.ones((1 << 22, 1), np.float32), np.ones((1, 1), np.float32),
      np.ones((1, 4), np.float32)), messages=None, chunk_bytes=60000)
  upload.end()
  assert next(upload.call).HasField('chunk')
  # A write does not use a slot.
  assert work.refusal_of(client) is None
  return upload


def test_cancel_while_the_answer_is_not_read(attnd, connect):
  # The answer takes 64 MiB, and the other request 240 MiB. Only its client may
  # end the call, however slow this machine is.
  with Server(attnd, '--max-in-flight=1', '--stream-idle-timeout=0',
              f'--memory-budget-bytes={300 << 20}') as server:
    client = connect(server.tcp)
    request = client.self_request(np.ones((640, 8, 16, 256), np.float32))

    def refusal():
      try:
        client.stub.SelfAttention(request, timeout=60)
        return None
      except grpc.RpcError as error:
        return Refusal(error).reason

    upload = hold_unread(client)
    assert refusal() == 'MEMORY_BUDGET'
    upload.call.cancel()
    poll_until(lambda: refusal() is None, 60, 'room for the other request')


def test_the_server_ends_a_client_that_does_not_read(attnd, connect):
  # gRPC in the client reads ahead up to its window. The server waits with
  # everything after that.
  with Server(attnd, '--max-in-flight=1', '--max-message-bytes=65536',
              '--stream-idle-timeout=3', '--log-level=debug') as server:
    client = connect(server.tcp)
    upload = hold_unread(client)
    poll_until(lambda: 'AttentionStream' in server.log(), 60,
               'the end of the call')
    with pytest.raises(grpc.RpcError) as caught:
      list(upload.call)
    assert caught.value.code() == grpc.StatusCode.CANCELLED


KILLED = '''
import sys
sys.path[:0] = sys.argv[3:]
import pathlib
from support import stubs
from support.client import Client
from support.server import open_channel
from stream_test import hold
import numpy as np
client = Client(stubs.load(pathlib.Path(sys.argv[2])), open_channel(sys.argv[1]))
x = np.ones((100, 8), np.float32)
upload = hold(client, client.request(x, x, x))
print('uploading', flush=True)
sys.stdin.read()
'''


def test_a_killed_client(slot, slot_address, build_dir):
  process = subprocess.Popen(
      [sys.executable, '-c', KILLED, slot_address, str(build_dir), *sys.path],
      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
  try:
    assert process.stdout.readline() == 'uploading\n'
    assert work.refusal_of(slot).reason == 'TOO_MANY_REQUESTS'
  finally:
    process.kill()
    process.communicate()
  assert process.returncode == -signal.SIGKILL
  work.wait_until_free(slot)


def test_a_drain_lets_an_upload_finish(attnd, stubs, rng):
  with Server(attnd) as server, open_channel(server.tcp) as channel:
    client = Client(stubs, channel)
    request = client.request(*(normal(rng, 100, 8) for _ in range(3)))
    upload = hold(client, request)
    server.signal()
    poll_until(lambda: 'draining' in server.log(), 60, 'the drain')
    upload.send(*upload.messages[2:])
    upload.end()
    chunks = list(upload.call)
    assert chunks[-1].HasField('stats')
    assert server.wait() == 0


def test_a_drain_does_not_wait_for_ever(attnd, stubs, rng):
  with Server(attnd, '--drain-timeout=1') as server, \
      open_channel(server.tcp) as channel:
    client = Client(stubs, channel)
    upload = hold(client, client.request(*(normal(rng, 100, 8)
                                           for _ in range(3))))
    start = time.monotonic()
    server.signal()
    assert server.wait(work.AT_ONCE_SECONDS) == 0
    assert time.monotonic() - start < work.AT_ONCE_SECONDS
    with pytest.raises(grpc.RpcError) as caught:
      list(upload.call)
    upload.end()
    assert caught.value.code() in (grpc.StatusCode.CANCELLED,
                                   grpc.StatusCode.UNAVAILABLE)


def test_a_draining_server_begins_no_stream(attnd, stubs, rng):
  with Server(attnd) as server, open_channel(server.tcp) as channel:
    client = Client(stubs, channel)
    request = client.request(*(normal(rng, 100, 8) for _ in range(3)))
    first, second = hold(client, request), Upload(client, request)
    server.signal()
    poll_until(lambda: 'draining' in server.log(), 60, 'the drain')
    second.send(*second.messages)
    second.end()
    with pytest.raises(grpc.RpcError) as caught:
      list(second.call)
    assert Refusal(caught.value).code == grpc.StatusCode.UNAVAILABLE
    first.send(*first.messages[2:])
    first.end()
    assert client.answer([client.pb.AttentionStreamResponse(
        header=client.pb.AttentionResponse()), *first.call]).HasField('stats')
    assert server.wait() == 0


def test_many_that_are_left_in_the_middle(slot, request_of_three):
  """Threads that cancel streams at random points leave nothing behind."""
  def leave(count):
    for _ in range(count):
      upload = Upload(slot, request_of_three)
      upload.send(*upload.messages)
      upload.end()
      upload.call.cancel()
  threads = [threading.Thread(target=leave, args=(25,)) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(120)
  work.wait_until_free(slot)


def test_attnctl_streams_by_itself(build_dir, small, client, rng, tmp_path):
  arrays = {name: normal(rng, 2, 700, 64) for name in ('query', 'key', 'value')}
  for name, array in arrays.items():
    np.save(tmp_path / f'{name}.npy', array)
  for address in small.addresses:
    subprocess.run(
        [str(build_dir / 'client' / 'attnctl'), f'--server={address}',
         'attention', f'--output={tmp_path / "output.npy"}',
         *(f'--{name}={tmp_path / name}.npy' for name in arrays)],
        check=True, timeout=300, stdout=subprocess.DEVNULL)
    expected = client.attention(*arrays.values())
    assert np.load(tmp_path / 'output.npy').tobytes() == expected.output.data
