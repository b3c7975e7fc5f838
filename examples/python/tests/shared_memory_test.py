"""Arrays in shared regions against a real server."""

import pathlib
import tempfile

import attnd
import numpy as np
import pytest

from support.server import Server


@pytest.fixture(scope='module')
def shm_socket():
  with tempfile.TemporaryDirectory(prefix='attnd-') as folder:
    yield pathlib.Path(folder) / 'shm.sock'


@pytest.fixture(scope='module')
def server(attnd_binary, shm_socket):
  with Server(attnd_binary, f'--shm-socket={shm_socket}',
              '--shm-quota-bytes=134217728') as running:
    yield running


@pytest.fixture
def region(shm_socket, server):
  del server  # the server makes the socket
  with attnd.SharedRegion(shm_socket, 1 << 25) as made:
    yield made


def shared(region, array):
  copy = region.array(array.shape, array.dtype)
  copy[...] = array
  return copy


def test_exact_over_every_transport(address, region, minilm):
  inputs = [minilm(name) for name in ('query', 'key', 'value')]
  there = [shared(region, array) for array in inputs]
  output = region.array(inputs[0].shape)
  lse = region.array(inputs[0].shape[:-1])
  with attnd.Client(address) as client:
    result = client.attention(*there, output_region=output, lse_region=lse,
                              return_lse=True)
    sent = client.attention(*inputs, return_lse=True)
  assert np.shares_memory(result.output, output)
  assert np.shares_memory(result.lse, lse)
  np.testing.assert_array_equal(output, sent.output)
  np.testing.assert_array_equal(lse, sent.lse)
  assert np.abs(output - minilm('expected')).max() <= 1.3e-6


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_16_bits_and_causal(server, region, dtype):
  ml_dtypes = pytest.importorskip('ml_dtypes')
  dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
  rng = np.random.default_rng(1)
  inputs = [rng.standard_normal((2, 50, 32)).astype(dtype) for _ in range(3)]
  there = [shared(region, array) for array in inputs]
  for out_type in (dtype, np.dtype('float32')):
    output = region.array((2, 50, 32), out_type)
    with attnd.Client(server.tcp) as client:
      client.attention(*there, output_region=output, causal='top_left')
      sent = client.attention(*inputs, causal='top_left',
                              output_dtype=out_type.name)
    assert output.dtype == sent.output.dtype
    np.testing.assert_array_equal(output, sent.output)


def test_views_and_one_sequence(server, region):
  many = region.array((4, 3, 16, 8))
  many[...] = np.random.default_rng(1).standard_normal(many.shape)
  output = region.array((3, 16, 8))
  with attnd.Client(server.tcp) as client:
    client.self_attention(many[2], output_region=output)
    np.testing.assert_array_equal(
        output, client.self_attention(many[2].copy()).output)
    client.cross_attention(many[1], many[3], output_region=output)
    np.testing.assert_array_equal(
        output, client.cross_attention(many[1].copy(), many[3].copy()).output)


def test_what_does_not_fit_is_refused_before_it_is_written(server, region):
  query, short = region.array((2, 8)), region.array((1, 8))
  with attnd.Client(server.tcp) as client:
    for how, match in (
        ({'output_region': short}, 'output_region: expected float32 of shape'),
        ({'output_region': np.zeros((2, 8), np.float32)}, 'of a SharedRegion'),
        ({'output_region': region.array((2, 8)), 'return_lse': True,
          'lse_region': region.array(3)}, 'lse_region: expected 2')):
      with pytest.raises(ValueError, match=match):
        client.self_attention(query, **how)
    with pytest.raises(ValueError, match='sequence: expected a contiguous'):
      client.self_attention(region.array((8, 2)).T, output_region=query)
    with pytest.raises(attnd.InvalidArgument) as caught:
      client.self_attention(query)
    assert caught.value.field == 'options.output_region'


def test_what_the_bytes_would_not_mean_is_refused(server, region):
  query, output = region.array((2, 8)), region.array((2, 8))
  half = region.array((2, 8), np.float16)
  with attnd.Client(server.tcp) as client:
    for how, kind, match in (
        ({'sequence': region.array((2, 8), '>f4'), 'output_region': output},
         ValueError, 'sequence: expected a little-endian array .* got >f4'),
        ({'output_region': region.array((2, 8), '>f4')}, ValueError,
         'output_region: expected a little-endian array .* got >f4'),
        ({'output_region': region.array((2, 8), np.int32)}, ValueError,
         "output_region: expected one of float32, .* got 'int32'"),
        ({'output_region': half, 'output_dtype': np.float32}, ValueError,
         'output_region: expected float32 of shape .*, got float16'),
        ({'sequence': query.tolist(), 'output_region': output}, TypeError,
         'output_region: expected every tensor .* a SharedRegion, got list;'),
        ({'sequence': None, 'output_region': output}, TypeError,
         'output_region: expected every tensor .* a SharedRegion, got NoneType;')):
      with pytest.raises(kind, match=match):
        client.self_attention(**{'sequence': query} | how)


@pytest.mark.parametrize('output_dtype', [None, np.float16, 'f16', 'float16'])
def test_ways_to_name_the_type_of_output_region(server, region, output_dtype):
  query, output = region.array((2, 8)), region.array((2, 8), np.float16)
  query[...] = 1
  with attnd.Client(server.tcp) as client:
    client.self_attention(query, output_region=output,
                          output_dtype=output_dtype)
  assert (output == 1).all()


def test_a_region_has_an_end(server, shm_socket):
  with attnd.SharedRegion(shm_socket, 4096) as region:
    query, output = region.array((2, 8)), region.array((2, 8))
    with pytest.raises(MemoryError):
      region.array(1024)
    with attnd.Client(server.tcp) as client:
      client.self_attention(query, output_region=output)
      place = {'handle': region.handle, 'offset_bytes': 64}
      region.close()
      query[...] = 1  # this process can still write to it
      with pytest.raises(ValueError, match='SharedRegion'):
        client.self_attention(query, output_region=output)
      with pytest.raises(attnd.InvalidArgument):
        client.self_attention(query, output_region=place)


def test_the_server_says_why(server, shm_socket):
  del server
  with pytest.raises(attnd.RegionRefused, match='size: expected at most'):
    attnd.SharedRegion(shm_socket, 1 << 28)
