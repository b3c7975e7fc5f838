"""Tests MemoryEstimate: the sum of its parts, its defaults and its inverse
goals."""

import grpc
import pytest

from support.server import Server

F32 = 4
INT64_MAX = 2**63 - 1


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


# The size that a goal searches, and the field of the answer.
GOALS = {
    'max_seq_len_for_budget_bytes': ('seq_len', 'max_seq_len'),
    'max_batch_for_budget_bytes': ('batch', 'max_batch'),
    'max_concurrency_for_budget_bytes': ('concurrency', 'max_concurrency')}


@pytest.mark.parametrize('transport', ['INLINE', 'STREAM', 'SHARED_MEMORY'])
@pytest.mark.parametrize('goal', GOALS)
def test_a_goal_finds_the_largest_that_fits(client, goal, transport):
  size_field, answer_field = GOALS[goal]
  problem = {'seq_len': 512, 'num_q_heads': 8, 'num_kv_heads': 2,
             'transport': f'TRANSPORT_{transport}'}
  got = estimate(client, **problem, **{goal: 0})
  assert got.WhichOneof('answer') == answer_field
  size = getattr(got, answer_field)
  assert size > 0 and got.fits
  same = estimate(client, **{**problem, size_field: size})
  assert same.fits
  assert (got.peak_bytes, got.flops, got.naive_bytes) == (
      same.peak_bytes, same.flops, same.naive_bytes)
  larger = estimate(client, **{**problem, size_field: size + 1})
  assert not larger.fits
  assert got.limiting_factor == larger.limiting_factor


@pytest.mark.parametrize('goal', GOALS)
def test_a_budget_in_the_goal_replaces_that_of_the_server(client, goal):
  size_field, answer_field = GOALS[goal]
  problem = {'seq_len': 512, 'num_q_heads': 8}
  small, smaller = (
      estimate(client, **problem, **{goal: budget})
      for budget in (100 << 20, 50 << 20))
  assert 0 < getattr(smaller, answer_field) < getattr(small, answer_field)
  assert small.peak_bytes <= 100 << 20 and smaller.peak_bytes <= 50 << 20
  assert small.limiting_factor == 'memory_budget'
  size = getattr(small, answer_field)
  larger = estimate(client, **{**problem, size_field: size + 1})
  assert larger.peak_bytes > 100 << 20
  none = estimate(client, **problem, **{goal: 1})
  assert none.WhichOneof('answer') == answer_field
  assert getattr(none, answer_field) == 0 and not none.fits


def test_the_longest_context_of_a_decode_step(client):
  budget = 1 << 30
  got = estimate(client, q_len=1, num_q_heads=32, num_kv_heads=8,
                 transport='TRANSPORT_STREAM',
                 max_seq_len_for_budget_bytes=budget)
  keys = {'q_len': 1, 'num_q_heads': 32, 'num_kv_heads': 8,
          'transport': 'TRANSPORT_STREAM'}
  longest = estimate(client, kv_len=got.max_seq_len, **keys)
  assert longest.peak_bytes == got.peak_bytes <= budget
  assert estimate(client, kv_len=got.max_seq_len + 1,
                  **keys).peak_bytes > budget


@pytest.mark.parametrize('request_fields,field', [
    ({'q_len': 1, 'kv_len': 1, 'max_seq_len_for_budget_bytes': 0}, 'kv_len'),
    ({'options': {'cu_seqlens_q': [0, 8], 'cu_seqlens_k': [0, 8]},
      'max_seq_len_for_budget_bytes': 0}, 'options.cu_seqlens_q'),
    ({'seq_len': 8, 'options': {'key_lengths': [8]},
      'max_batch_for_budget_bytes': 0}, 'options.key_lengths'),
    ({'seq_len': 8, 'max_batch_for_budget_bytes': -1},
     'max_batch_for_budget_bytes'),
    ({'max_concurrency_for_budget_bytes': 0}, 'seq_len'),
])
def test_what_contradicts_a_goal_is_named(client, refused, request_fields,
                                          field):
  refusal = refused(lambda: estimate(client, **request_fields))
  assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT, refusal
  assert refusal.field == field, refusal


def test_the_server_accepts_just_the_longest_that_it_estimates(
    attnd, connect, refused, rng):
  budget = 64 << 20
  with Server(attnd, f'--memory-budget-bytes={budget}') as server:
    client = connect(server.tcp)
    shape = {'num_q_heads': 4, 'num_kv_heads': 4, 'dimensions': 64}
    got = estimate(client, **shape, max_seq_len_for_budget_bytes=0)
    assert got.limiting_factor == 'memory_budget'
    assert got.peak_bytes <= budget
    tensor = rng.standard_normal((1, 4, got.max_seq_len + 1, 64)).astype('f')
    fits = tensor[:, :, :-1]
    answer = client.attention(fits, fits, fits)
    assert tuple(answer.output.shape) == fits.shape
    refusal = refused(lambda: client.attention(tensor, tensor, tensor))
    assert refusal.code == grpc.StatusCode.RESOURCE_EXHAUSTED, refusal
    assert refusal.reason == 'MEMORY_BUDGET', refusal


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


@pytest.mark.parametrize('request_fields,factor', [
    ({'seq_len': 100_000_000, 'num_q_heads': 32}, 'message_size'),
    ({'seq_len': 100_000_000, 'num_q_heads': 32,
      'transport': 'TRANSPORT_STREAM'}, 'memory_budget'),
    ({'seq_len': 2**62}, 'message_size'),
    ({'seq_len': 2**31, 'batch': 2**31}, 'message_size'),
    ({'seq_len': 1024, 'concurrency': 2**60}, 'max_in_flight')])
def test_a_problem_of_any_size_has_an_answer(client, request_fields, factor):
  got = estimate(client, **request_fields)
  assert not got.fits
  assert got.limiting_factor == factor
  # Each number is exact, or the largest that fits.
  length, batch = request_fields['seq_len'], request_fields.get('batch', 1)
  heads = request_fields.get('num_q_heads', 1)
  tensor = batch * heads * length * 128 * F32
  scores = batch * heads * length**2 * F32
  assert got.input_bytes == min(3 * tensor, INT64_MAX)
  assert got.output_bytes == min(tensor, INT64_MAX)
  assert got.naive_bytes == min(4 * tensor + scores, INT64_MAX)
  assert got.flops == min(scores * 128, INT64_MAX)
