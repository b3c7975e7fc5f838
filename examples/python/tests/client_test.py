"""Both clients against a real server: answers, options, errors, deadlines."""

import asyncio

import attnd
import grpc
import numpy as np
import pytest

# 16 MiB that need hundreds of seconds to compute, so that only a stop ends the
# call within a test.
ENDLESS = np.ones((16, 262144, 1), np.float32)


def test_exact_over_every_transport(address, minilm):
  inputs = [minilm(name) for name in ('query', 'key', 'value')]
  with attnd.Client(address) as client:
    result = client.attention(*inputs, return_lse=True)
    causal = client.attention(*inputs, causal='top_left')
  # The error of PyTorch's float32 kernel, and twice the spacing of float32 at
  # an lse of 24.
  assert np.abs(result.output - minilm('expected')).max() <= 1.3e-6
  assert np.abs(result.lse - minilm('expected_lse')).max() <= 4e-6
  assert np.abs(causal.output - minilm('expected_causal')).max() <= 8.2e-7
  assert causal.lse is None
  assert result.output.dtype == np.float32
  assert result.stats.isa


def test_asyncio_gives_the_same_bits(address, minilm):
  inputs = [minilm(name) for name in ('query', 'key', 'value')]

  async def run():
    async with attnd.AsyncClient(address) as client:
      return await asyncio.gather(*(
          client.attention(*inputs, causal='bottom-right') for _ in range(4)))

  with attnd.Client(address) as client:
    expected = client.attention(*inputs, causal='bottom-right').output
  for result in asyncio.run(run()):
    np.testing.assert_array_equal(result.output, expected)


def test_self_and_cross_attention_agree_with_attention(server, minilm):
  query, key = minilm('query'), minilm('key')[:, :100]
  with attnd.Client(server.tcp) as client:
    for got, expected in (
        (client.self_attention(query, scale=0.5),
         client.attention(query, query, query, scale=0.5)),
        (client.cross_attention(query, key, temperature=2),
         client.attention(query, key, key, temperature=2))):
      np.testing.assert_array_equal(got.output, expected.output)


def test_what_surrounds_attention(server):
  with attnd.Client(server.tcp) as client:
    info = client.server_info()
    estimate = client.memory_estimate(
        seq_len=1024, dtype='f32', options={'return_lse': True})
    # Leaves out naive attention, so that the benchmark takes no time.
    events = []
    result = client.benchmark(num_vectors=64, repetitions=1,
                              on_progress=events.append)
    load = client.server_info().load
  assert info.threads >= 1
  assert load.max_in_flight >= 1 and load.uptime.ToNanoseconds() > 0
  finished = {method.method: method.finished for method in load.methods}
  assert finished['MemoryEstimate'] >= 1 and finished['Benchmark'] >= 1
  assert estimate.output_bytes == 1024 * 128 * 4 + 1024 * 4
  assert result.num_queries == 64 and events


def test_streams_give_the_same_bits(address, minilm):
  inputs = [minilm(name) for name in ('query', 'key', 'value')]
  options = {'bias': np.ones((331, 331), np.float32), 'return_lse': True,
             'mask': np.tri(331, dtype=bool)}

  async def run():
    async with attnd.AsyncClient(address) as client:
      return await client.attention_stream(*inputs, **options)

  with attnd.Client(address) as client:
    expected = client.attention(*inputs, **options)
    for got in (client.attention_stream(*inputs, **options),
                asyncio.run(run())):
      np.testing.assert_array_equal(got.output, expected.output)
      np.testing.assert_array_equal(got.lse, expected.lse)
    with pytest.raises(attnd.InvalidArgument) as caught:
      client.attention_stream(inputs[0], inputs[1][..., :8], inputs[2])
  assert caught.value.field == 'header.key.shape[2]'


@pytest.mark.parametrize('run', ['sync', 'asyncio'])
def test_a_refusal_names_the_field(server, run):
  two, three = np.ones((1, 2), np.float32), np.ones((1, 3), np.float32)

  async def refused():
    async with attnd.AsyncClient(server.tcp) as client:
      await client.attention(two, three, two)

  with pytest.raises(attnd.InvalidArgument) as caught:
    if run == 'asyncio':
      asyncio.run(refused())
    else:
      with attnd.Client(server.tcp) as client:
        client.attention(two, three, two)
  error = caught.value
  assert error.code == grpc.StatusCode.INVALID_ARGUMENT
  assert error.field == 'key.shape[1]'
  assert error.reason == 'INVALID_FIELD'
  assert 'expected 2' in error.field_violations[0].description


@pytest.mark.parametrize('run', ['sync', 'asyncio'])
def test_the_timeout_stops_the_call(server, run):

  async def too_long():
    async with attnd.AsyncClient(server.tcp) as client:
      await client.self_attention(ENDLESS, timeout=0.5)

  with pytest.raises(attnd.DeadlineExceeded):
    if run == 'asyncio':
      asyncio.run(too_long())
    else:
      with attnd.Client(server.tcp, timeout=0.5) as client:
        client.self_attention(ENDLESS)


def test_no_server_is_unavailable(tmp_path):
  with attnd.Client(f'unix:{tmp_path}/none',
                    retry=attnd.RetryPolicy(max_attempts=1)) as client:
    with pytest.raises(attnd.Unavailable):
      client.server_info()


def test_an_async_client_from_before_its_loop(server):
  client = attnd.AsyncClient(server.tcp)  # outside of any loop, as in a module
  one = np.ones((1, 1), np.float32)

  async def use():
    results = await asyncio.gather(*(
        client.self_attention(one) for _ in range(4)))
    return [result.output for result in results]

  assert asyncio.run(use()) == [one] * 4
  with pytest.raises(RuntimeError, match='another one for this loop'):
    asyncio.run(use())


def test_the_end_of_an_async_client(server):

  async def run():
    client = attnd.AsyncClient(server.tcp)
    await client.close()  # it never connected
    with pytest.raises(ValueError, match='closed'):
      await client.server_info()
    async with attnd.AsyncClient(server.tcp) as client:
      await client.server_info()
    with pytest.raises(ValueError, match='closed'):
      await client.server_info()

  asyncio.run(run())
