"""Compares the three attention methods with float64, for many shapes, ranks,
heads and options."""

import numpy as np
import pytest

from support import reference


def normal(rng, *shape):
  return rng.standard_normal(shape).astype(np.float32)


def check(client, response, query, key, value, **options):
  output, lse = reference.attention(query, key, value, **options)
  bound = reference.error_bound(value)
  reference.assert_close(client.array(response.output), output, bound)
  if response.HasField('lse'):
    reference.assert_close(client.array(response.lse), lse, bound)


@pytest.mark.parametrize('q_heads,kv_heads', [(4, 4), (6, 2), (8, 1)])
@pytest.mark.parametrize(
    'causal',
    [reference.NONE, reference.TOP_LEFT, reference.BOTTOM_RIGHT])
def test_grouped_heads(client, rng, q_heads, kv_heads, causal):
  query = normal(rng, 2, q_heads, 70, 40)
  key, value = normal(rng, 2, kv_heads, 133, 40), normal(
      rng, 2, kv_heads, 133, 24)
  response = client.attention(
      query, key, value, causal=causal, return_lse=True)
  check(client, response, query, key, value, causal=causal)


@pytest.mark.parametrize('shape', [(5, 8), (3, 5, 8), (2, 3, 5, 8)])
def test_ranks(client, rng, shape):
  query, key, value = (normal(rng, *shape) for _ in range(3))
  response = client.attention(query, key, value, return_lse=True)
  assert tuple(response.output.shape) == shape
  assert tuple(response.lse.shape) == shape[:-1]
  check(client, response, query, key, value)


@pytest.mark.parametrize('head_dim', [1, 3, 64, 127, 512])
def test_head_dims(client, rng, head_dim):
  query, key, value = (normal(rng, 2, 33, head_dim) for _ in range(3))
  check(client, client.attention(query, key, value), query, key, value)


@pytest.mark.parametrize('q_len,kv_len', [(1, 1), (1, 300), (300, 1), (65, 63)])
@pytest.mark.parametrize('causal', [reference.TOP_LEFT, reference.BOTTOM_RIGHT])
def test_causal_where_lengths_differ(client, rng, q_len, kv_len, causal):
  query = normal(rng, 2, q_len, 16)
  key, value = normal(rng, 2, kv_len, 16), normal(rng, 2, kv_len, 16)
  response = client.attention(
      query, key, value, causal=causal, return_lse=True)
  check(client, response, query, key, value, causal=causal)


def test_scale_temperature_and_block_size(client, rng):
  query, key, value = (normal(rng, 2, 50, 16) for _ in range(3))
  response = client.attention(
      query, key, value, scale=0.1, temperature=0.5, block_size=16)
  check(client, response, query, key, value, scale=0.1, temperature=0.5)


def test_self_attention(client, rng):
  sequence = normal(rng, 2, 3, 90, 32)
  response = client.stub.SelfAttention(
      client.self_request(
          sequence, causal=reference.TOP_LEFT, return_lse=True))
  check(client, response, sequence, sequence, sequence,
        causal=reference.TOP_LEFT)


def test_cross_attention(client, rng):
  queries, kv = normal(rng, 4, 20, 32), normal(rng, 2, 77, 32)
  response = client.stub.CrossAttention(
      client.pb.CrossAttentionRequest(
          queries=client.tensor(queries), kv_sequence=client.tensor(kv),
          options=client.options(return_lse=True)))
  check(client, response, queries, kv, kv)


@pytest.mark.parametrize(
    'q_shape,kv_shape',
    [((2, 3, 0, 8), (2, 3, 5, 8)), ((2, 3, 5, 8), (2, 3, 0, 8)),
     ((0, 3, 5, 8), (0, 3, 5, 8)), ((2, 0, 5, 8), (2, 0, 5, 8))])
def test_empty_axes(client, q_shape, kv_shape):
  query, kv = np.ones(q_shape), np.ones(kv_shape)
  response = client.attention(query, kv, kv, return_lse=True)
  assert client.array(response.output).shape == q_shape
  assert not client.array(response.output).any()
  lse = client.array(response.lse)
  assert lse.shape == q_shape[:-1]
  assert np.all(lse == -np.inf)


def test_stats_say_what_ran(client, rng):
  query = normal(rng, 1, 2, 64, 32)
  stats = client.attention(query, query, query).stats
  assert stats.isa in ('avx512_bf16', 'avx512', 'avx2', 'neon_bf16', 'neon', 'scalar')
  assert stats.kernel
  assert stats.tile_q > 0 and stats.tile_kv > 0 and stats.threads > 0
  assert stats.flops == 2 * (32 + 32) * 2 * 64 * 64
  assert stats.workspace_bytes > 0
  assert stats.compute_time.ToNanoseconds() > 0


def test_server_info(client):
  info = client.stub.GetServerInfo(client.pb.GetServerInfoRequest())
  assert info.version.count('.') == 2
  assert info.isa
  assert info.threads >= 1
  assert info.max_receive_message_bytes == 268435456
  assert info.max_send_message_bytes == 268435456
  assert info.memory_budget_bytes > 0
  assert info.max_benchmark_vectors > 0
