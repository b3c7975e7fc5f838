"""Tests MemoryEstimate: the sum of its parts, its defaults and its inverse
goals."""

import grpc
import pytest

F32 = 4


def estimate(client, **request):
  return client.stub.MemoryEstimate(
      client.pb.MemoryEstimateRequest(**request), timeout=60)


def test_the_parts(client):
  got = estimate(client, batch=2, num_q_heads=8, num_kv_heads=2, q_len=1000,
                 kv_len=3000, head_dim=64, v_head_dim=32,
                 options={'return_lse': True})
  query, key, value = 2 * 8 * 1000 * 64, 2 * 2 * 3000 * 64, 2 * 2 * 3000 * 32
  output, lse = 2 * 8 * 1000 * 32, 2 * 8 * 1000
  assert got.input_bytes == (query + key + value) * F32
  assert got.output_bytes == (output + lse) * F32
  assert got.naive_bytes == (
      2 * 8 * 1000 * 3000 * F32 + got.input_bytes + got.output_bytes)
  assert got.flash_bytes == (
      got.workspace_bytes + got.input_bytes + got.output_bytes)
  assert got.reduction_ratio == pytest.approx(
      1 - got.flash_bytes / got.naive_bytes)
  assert got.peak_per_request_bytes >= got.flash_bytes
  assert got.peak_bytes == got.peak_per_request_bytes
  assert got.required_message_bytes >= got.input_bytes
  assert got.flops == 2 * (64 + 32) * 2 * 8 * 1000 * 3000
  assert got.fits


def test_defaults(client):
  short = estimate(client, seq_len=777)
  assert short == estimate(
      client, seq_len=777, dimensions=128, batch=1, num_q_heads=1,
      num_kv_heads=1, q_len=777, kv_len=777, head_dim=128, v_head_dim=128,
      dtype=client.pb.DATA_TYPE_F32, concurrency=1,
      transport=client.pb.TRANSPORT_INLINE, estimate={})


def test_causal_counts_what_is_seen(client):
  got = estimate(client, seq_len=100, dimensions=8,
                 options={'causal': client.pb.CAUSAL_TOP_LEFT})
  assert got.flops == 2 * (8 + 8) * (100 * 101 // 2)


def test_concurrency_multiplies(client):
  one = estimate(client, seq_len=1024)
  ten = estimate(client, seq_len=1024, concurrency=10)
  assert ten.peak_per_request_bytes == one.peak_per_request_bytes
  assert ten.peak_bytes == 10 * one.peak_bytes


def test_the_workspace_is_what_a_call_reports(client, rng):
  tensor = rng.standard_normal((2, 4, 300, 64))
  stats = client.attention(tensor, tensor, tensor).stats
  got = estimate(client, batch=2, num_q_heads=4, seq_len=300, dimensions=64)
  assert stats.workspace_bytes <= got.workspace_bytes
  assert stats.flops == got.flops


@pytest.mark.parametrize('goal', [
    'max_seq_len_for_budget_bytes', 'max_batch_for_budget_bytes',
    'max_concurrency_for_budget_bytes'])
def test_an_inverse_goal_is_not_built_and_named(client, refused, goal):
  refusal = refused(lambda: estimate(client, seq_len=512, **{goal: 1 << 30}))
  assert (refusal.code, refusal.field) == (
      grpc.StatusCode.UNIMPLEMENTED, goal), refusal


@pytest.mark.parametrize('request_fields,field', [
    ({}, 'seq_len'),
    ({'seq_len': -1}, 'seq_len'),
    ({'seq_len': 8, 'batch': -2}, 'batch'),
    ({'seq_len': 8, 'dimensions': -1}, 'dimensions'),
    ({'seq_len': 8, 'num_q_heads': 3, 'num_kv_heads': 2}, 'num_q_heads'),
    ({'seq_len': 8, 'dtype': 4}, 'dtype'),
    ({'seq_len': 8, 'dtype': 55}, 'dtype'),
    ({'seq_len': 8, 'transport': 66}, 'transport'),
    ({'seq_len': 8, 'concurrency': -1}, 'concurrency'),
    ({'seq_len': 8, 'threads': -1}, 'threads'),
])
def test_wrong_requests_name_the_field(client, refused, request_fields, field):
  refusal = refused(lambda: estimate(client, **request_fields))
  assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT, refusal
  assert refusal.field.startswith(field), refusal
  assert refusal.domain == 'attnd'


@pytest.mark.parametrize('request_fields', [
    {'seq_len': 2**62}, {'seq_len': 2**31, 'batch': 2**31},
    {'seq_len': 1024, 'concurrency': 2**60}])
def test_overflow_is_refused(client, refused, request_fields):
  refusal = refused(lambda: estimate(client, **request_fields))
  assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT, refusal
  assert refusal.reason == 'INT64_RANGE', refusal
