"""Tensors that are too large for one message are streamed, or refused by an error
that says what to do."""

import asyncio
import gc
import math
import weakref

import attnd
from attnd import transport
from attnd.v1 import attention_pb2 as pb
import numpy as np
import pytest

from support.server import Server, poll_until

SMALLEST_LIMIT = 65536  # the smallest --max-message-bytes


@pytest.fixture(scope='module')
def narrow(attnd_binary):
  with Server(attnd_binary,
              f'--max-message-bytes={SMALLEST_LIMIT}') as running:
    yield running


def normal(*shape, dtype=np.float32):
  return np.random.default_rng(len(shape)).standard_normal(
      shape, np.float32).astype(dtype)


LONG = normal(3000, 64)
HALF = normal(2, 700, 64, dtype=np.float16)

CALLS = {
    'attention': lambda c: c.attention(LONG[:9], LONG, LONG[::-1]),
    'self_attention': lambda c: c.self_attention(HALF, return_lse=True),
    'cross_attention': lambda c: c.cross_attention(
        LONG[:9], LONG, causal='bottom_right'),
    'mask and bias': lambda c: c.attention(
        LONG[:9], LONG[:99], LONG[:99], bias=normal(9, 99), return_lse=True,
        mask=np.ones((500, 1, 9, 99), bool)[0]),
    'large mask alone': lambda c: c.self_attention(
        LONG[:300], mask=np.tri(300, dtype=bool)),
    'large answer alone': lambda c: c.attention(
        np.ones((6000, 1), np.float32), LONG[:9, :1], LONG[:9]),
    'large lse alone': lambda c: c.attention(
        np.ones((4, 2000, 1), np.float16), np.ones((4, 1, 1), np.float16),
        np.ones((4, 1, 2), np.float16), return_lse=True),
    'a message given as such': lambda c: c.self_attention(pb.Tensor(
        dtype=pb.DATA_TYPE_F32, shape=LONG.shape, data=LONG.tobytes())),
}


def same(got, expected):
  np.testing.assert_array_equal(got.output, expected.output)
  assert got.output.flags.writeable == expected.output.flags.writeable
  assert (got.lse is None) == (expected.lse is None)
  if expected.lse is not None:
    np.testing.assert_array_equal(got.lse, expected.lse)


@pytest.mark.parametrize('call', CALLS.values(), ids=CALLS)
def test_what_is_too_large_is_streamed(server, narrow, call):

  async def by_asyncio():
    async with attnd.AsyncClient(narrow.tcp) as client:
      return await call(client)

  with attnd.Client(server.tcp) as wide, attnd.Client(narrow.tcp) as client:
    expected = call(wide)
    same(call(client), expected)
  same(asyncio.run(by_asyncio()), expected)


def test_attention_stream_keeps_to_the_limit(server, narrow):
  """Its chunks are messages, so they must not exceed the limit either."""
  with attnd.Client(server.tcp) as wide, attnd.Client(narrow.tcp) as client:
    same(client.attention_stream(LONG, LONG, LONG),
         wide.attention(LONG, LONG, LONG))


def test_the_server_is_asked_once(server, monkeypatch):
  with attnd.Client(server.tcp) as client:
    asked = []
    ask = client._stub.GetServerInfo
    monkeypatch.setattr(client._stub, 'GetServerInfo', lambda *args, **kw: (
        asked.append(1), ask(*args, **kw))[1])
    client.self_attention(LONG[:9])
    assert not asked
    for _ in range(3):
      client.self_attention(LONG)
  assert len(asked) == 1


def test_another_server_takes_the_place(attnd_binary, tmp_path):
  """The new server takes smaller messages than the client was told."""
  listen = f'unix:{tmp_path}/attnd.sock'
  with attnd.Client(listen) as client:
    with Server(attnd_binary, listen=listen):
      expected = client.self_attention(LONG)
    with Server(attnd_binary, f'--max-message-bytes={SMALLEST_LIMIT}',
                listen=listen):
      same(client.self_attention(LONG), expected)


@pytest.mark.parametrize('run', ['sync', 'asyncio'])
def test_backward_names_the_limit(narrow, run):
  arguments = [LONG, LONG, LONG, LONG, LONG[:, 0], LONG]

  async def by_asyncio():
    async with attnd.AsyncClient(narrow.tcp) as client:
      await client.attention_backward(*arguments)

  with pytest.raises(attnd.ResourceExhausted) as caught:
    if run == 'asyncio':
      asyncio.run(by_asyncio())
    else:
      with attnd.Client(narrow.tcp) as client:
        client.attention_backward(*arguments)
  assert caught.value.reason == 'MESSAGE_TOO_LARGE'
  for part in ('AttentionBackwardRequest', '65536 bytes', '--max-message-bytes',
               'several calls'):
    assert part in caught.value.message


def test_a_refusal_reaches_an_async_client_that_still_sends(server):
  """grpc.aio would replace it by INTERNAL, in most of these calls."""
  large = normal(30000, 64)

  async def by_asyncio():
    async with attnd.AsyncClient(server.tcp) as client:
      for _ in range(100):
        with pytest.raises(attnd.InvalidArgument, match='options.scale'):
          await client.attention_stream(large, large, large, scale=math.nan)

  asyncio.run(by_asyncio())


@pytest.fixture
def no_collector():
  """Only reference counts free memory."""
  gc.collect()
  gc.disable()
  yield
  gc.enable()


FAILURES = {
    'refused': lambda c, a: c.self_attention(a, scale=math.nan),
    'refused stream': lambda c, a: c.attention_stream(a, a, a, scale=math.nan),
    'deadline': lambda c, a: c.self_attention(a, timeout=1e-4),
    'nobody there': lambda c, a: c.self_attention(a),
}


@pytest.mark.parametrize('run', ['sync', 'asyncio'])
@pytest.mark.parametrize('failure', FAILURES)
def test_a_failed_call_lets_go_of_its_arrays(server, no_collector, failure, run):
  if (failure, run) == ('refused stream', 'asyncio'):
    pytest.skip('grpc.aio 1.51 itself refers to a stream in a cycle')
  address = '127.0.0.1:1' if failure == 'nobody there' else server.tcp
  array = normal(3000, 64)
  is_alive = weakref.ref(array)

  async def by_asyncio(array):
    async with attnd.AsyncClient(address, timeout=1) as client:
      with pytest.raises(attnd.AttndError):
        await FAILURES[failure](client, array)

  if run == 'asyncio':
    asyncio.run(by_asyncio(array))
  else:
    with attnd.Client(address, timeout=1) as client:
      with pytest.raises(attnd.AttndError):
        FAILURES[failure](client, array)
  del array
  # gRPC's thread that sends a stream can hold the array for a short time.
  poll_until(lambda: is_alive() is None, 10, 'the end of the array')


# 3 GiB of address space, without memory.
HUGE = np.broadcast_to(np.uint8(0), 3 << 30)


def request(message, **payloads):
  return transport.Request(message, {
      name: (pb.Tensor(dtype=pb.DATA_TYPE_F32), payload)
      for name, payload in payloads.items()})


def test_no_message_of_more_than_2_gib():
  forward = request(pb.SelfAttentionRequest(), sequence=HUGE)
  assert forward.must_stream(transport.Limits(streams=True))
  with pytest.raises(attnd.ResourceExhausted,
                     match='at most 2147483647 bytes.*no attention_stream'):
    forward.must_stream(transport.Limits())
  with pytest.raises(attnd.ResourceExhausted, match='AttentionBackwardRequest: '
                     '.* 2147483647 bytes.*several calls') as caught:
    request(pb.AttentionBackwardRequest(), query=HUGE).must_stream(
        transport.Limits(streams=True))
  # Raising a limit of the server would not help.
  assert '--max-message-bytes' not in caught.value.message


def test_what_a_stream_cannot_carry():
  """A stream has no place for numbers as `values`, nor for shared memory."""
  with pytest.raises(attnd.ResourceExhausted, match='--max-message-bytes, or '
                     'pass every tensor as an array'):
    request(pb.CrossAttentionRequest(), queries=HUGE,
            kv_sequence=None).must_stream(
                transport.Limits(request_bytes=1 << 20, streams=True))
