"""Compares every option of the contract with float64, through real calls."""

import numpy as np
import pytest

from support import reference
from support.client import bf16, widened
from support.problems import (CU_SEQLENS_K, CU_SEQLENS_Q, INF, OPTIONS, RAGGED,
                              expected_options, in_bshd, mask_of, normal)

def check(client, response, tensors, options, bound=None):
  """Compares output and lse, which the call has to ask for."""
  numbers = [widened(t) for t in tensors]
  output, lse = reference.attention(*numbers, **expected_options(options))
  f32_bound = reference.error_bound(numbers[2])
  reference.assert_close(client.array(response.output), output,
                         bound or f32_bound)
  reference.assert_close(client.array(response.lse), lse, 2 * f32_bound)


@pytest.mark.parametrize('values', [False, True], ids=['data', 'values'])
@pytest.mark.parametrize('name', OPTIONS)
def test_an_option(client, rng, tensors, name, values):
  options = OPTIONS[name](rng)
  response = client.attention(
      *tensors, return_lse=True, values=values, **options)
  assert response.output.WhichOneof('payload') == (
      'values' if values else 'data')
  check(client, response, tensors, options)


@pytest.mark.parametrize('name', OPTIONS)
def test_the_other_layout_has_the_same_bits(client, rng, tensors, name):
  options = OPTIONS[name](rng)
  one = client.attention(*tensors, return_lse=True, **options)
  two = client.attention(
      *in_bshd(tensors), layout=reference.BSHD, return_lse=True, **options)
  assert tuple(two.output.shape) == (2, 37, 4, 16)
  assert np.array_equal(
      client.array(one.output), np.swapaxes(client.array(two.output), 1, 2))
  assert one.lse == two.lse


@pytest.mark.parametrize('name', OPTIONS)
def test_every_transport_has_the_same_bits(
    client, server, connect, rng, tensors, name):
  options = OPTIONS[name](rng)
  unix = connect(server.unix)
  answers = [
      caller.attention(*tensors, return_lse=True, values=values, **options)
      for caller in (client, unix) for values in (False, True)]
  for answer in answers[1:]:
    for part in ('output', 'lse'):
      got, first = (
          client.array(getattr(a, part)) for a in (answer, answers[0]))
      assert got.tobytes() == first.tobytes(), part


@pytest.mark.parametrize('shape', [(9, 8), (3, 9, 8)])
def test_bshd_of_lower_rank(client, rng, shape):
  tensors = [normal(rng, *shape) for _ in range(3)]
  if len(shape) == 3:  # [seq, heads, dim]
    tensors = [np.swapaxes(t, 0, 1) for t in tensors]
  options = {'layout': reference.BSHD}
  response = client.attention(*tensors, return_lse=True, **options)
  assert tuple(response.lse.shape) == shape[:-1]
  check(client, response, tensors, options)


@pytest.mark.parametrize('options', [
    {}, {'causal': reference.TOP_LEFT}, {'causal': reference.BOTTOM_RIGHT},
    {'causal': reference.BOTTOM_RIGHT, 'window_left': 9},
    {'query_offsets': [0, 99, 5, 7, 50], 'causal': reference.TOP_LEFT},
    {'query_offsets': [4], 'window_left': 3, 'window_right': 3},
    {'alibi_slopes': [0.1, 0.2, 0.3, 0.4], 'sink_logits': [0, 1, -1, 2],
     'logits_soft_cap': 2},
], ids=str)
@pytest.mark.parametrize('layout', [reference.BHSD, reference.BSHD])
def test_a_ragged_batch(client, rng, options, layout):
  tensors = [normal(rng, 4, 45, 24), normal(rng, 2, 213, 24),
             normal(rng, 2, 213, 16)]
  if layout == reference.BSHD:
    tensors = [np.swapaxes(t, 0, 1) for t in tensors]
  options = {'layout': layout, **RAGGED, **options}
  response = client.attention(*tensors, return_lse=True, **options)
  check(client, response, tensors, options)


def test_a_ragged_batch_of_rank_2(client, rng):
  tensors = [normal(rng, 45, 8), normal(rng, 213, 8), normal(rng, 213, 8)]
  response = client.attention(*tensors, return_lse=True, **RAGGED)
  check(client, response, tensors, RAGGED)


def test_ragged_entries_have_the_bits_that_they_have_alone(client, rng):
  tensors = [normal(rng, 4, 45, 24), normal(rng, 2, 213, 24),
             normal(rng, 2, 213, 16)]
  together = client.array(client.attention(
      *tensors, causal=reference.BOTTOM_RIGHT, **RAGGED).output)
  for b in range(5):
    rows = slice(CU_SEQLENS_Q[b], CU_SEQLENS_Q[b + 1])
    keys = slice(CU_SEQLENS_K[b], CU_SEQLENS_K[b + 1])
    alone = client.attention(
        tensors[0][:, rows], tensors[1][:, keys], tensors[2][:, keys],
        causal=reference.BOTTOM_RIGHT)
    assert np.array_equal(client.array(alone.output), together[:, rows]), b


# An output is rounded to half a unit in its last place, which is 2^-11 or 2^-8
# of it. With bf16 products, weights are rounded too, and so are q and k if
# their types are wider.
F16_BOUND, BF16_BOUND, ROUNDED_INPUTS_BOUND = 2**-11, 2**-7, 2**-5
AS = {'f32': lambda t: t, 'f16': lambda t: t.astype(np.float16), 'bf16': bf16}


def bound_of(numbers, relative):
  return (reference.error_bound(numbers) +
          relative * float(np.max(np.abs(numbers))))


@pytest.mark.parametrize('query', AS)
@pytest.mark.parametrize('key', AS)
@pytest.mark.parametrize('value', AS)
def test_types_mix(client, rng, tensors, query, key, value):
  tensors = [AS[name](t) for name, t in zip((query, key, value), tensors)]
  options = {'causal': reference.BOTTOM_RIGHT}
  response = client.attention(*tensors, return_lse=True, **options)
  assert response.output.dtype == client.types[tensors[0].dtype]
  assert response.lse.dtype == client.pb.DATA_TYPE_F32
  relative = {'f32': 0, 'f16': F16_BOUND, 'bf16': BF16_BOUND}[query]
  if value == 'bf16':
    relative = BF16_BOUND
  check(client, response, tensors, options,
        bound_of(widened(tensors[2]), relative))


@pytest.mark.parametrize('output', AS)
@pytest.mark.parametrize('inputs', AS)
def test_output_dtype(client, rng, tensors, inputs, output):
  tensors = [AS[inputs](t) for t in tensors]
  dtype = client.types[AS[output](np.zeros(1, np.float32)).dtype]
  response = client.attention(
      *tensors, return_lse=True, output_dtype=dtype,
      precision=client.pb.PRECISION_F32)
  assert response.output.dtype == dtype
  relative = {'f32': 0, 'f16': F16_BOUND, 'bf16': 2**-8}[output]
  check(client, response, tensors, {},
        bound_of(widened(tensors[2]), relative))


def test_precision(client, tensors):
  pb = client.pb
  answers = {
      precision: client.attention(
          *tensors, return_lse=True, precision=precision)
      for precision in (pb.PRECISION_AUTO, pb.PRECISION_F32,
                        pb.PRECISION_BF16)}
  rounded = answers[pb.PRECISION_BF16]
  assert rounded.output != answers[pb.PRECISION_F32].output
  output, lse = reference.attention(*tensors)
  # AUTO never reduces the precision of F32.
  for exact in answers[pb.PRECISION_AUTO], answers[pb.PRECISION_F32]:
    bound = reference.error_bound(tensors[2])
    reference.assert_close(client.array(exact.output), output, bound)
    reference.assert_close(client.array(exact.lse), lse, bound)
  bound = bound_of(tensors[2], ROUNDED_INPUTS_BOUND)
  reference.assert_close(client.array(rounded.output), output, bound)
  reference.assert_close(client.array(rounded.lse), lse, bound)


def test_self_and_cross_take_options(client, rng):
  sequence, other = normal(rng, 2, 4, 30, 16), normal(rng, 2, 2, 50, 16)
  options = {'window_left': 5, 'bias': normal(rng, 30, 1),
             'sink_logits': [0, 1, 2, 3]}
  response = client.stub.SelfAttention(
      client.self_request(sequence, return_lse=True, **options))
  check(client, response, (sequence,) * 3, options)
  options['mask'] = mask_of(rng, 2, 1, 1, 50)
  response = client.stub.CrossAttention(
      client.pb.CrossAttentionRequest(
          queries=client.tensor(bf16(sequence)),
          kv_sequence=client.tensor(other.astype(np.float16)),
          options=client.options(
              return_lse=True, output_dtype=client.pb.DATA_TYPE_F32,
              **options)))
  check(client, response,
        (bf16(sequence), other.astype(np.float16), other.astype(np.float16)),
        options)


def test_hidden_keys_touch_nothing(client, rng, tensors):
  """A hidden key has no effect, not even as 0 * NaN, whichever option hides
  it."""
  hidden = np.zeros(61, bool)
  hidden[[0, 17, 45, 60]] = True
  expected = client.attention(*tensors, mask=~hidden)
  spoilt = [tensors[0], tensors[1].copy(), tensors[2].copy()]
  spoilt[1][..., hidden, :], spoilt[2][..., hidden, :] = np.nan, np.inf
  bias = np.where(hidden, -INF, 0).astype(np.float32)
  for options in ({'mask': ~hidden}, {'bias': bias}):
    got = client.attention(*spoilt, **options)
    output, _ = reference.attention(*tensors, mask=~hidden)
    reference.assert_close(client.array(got.output), output,
                           reference.error_bound(tensors[2]))
  assert client.attention(*spoilt, mask=~hidden).output == expected.output


def test_what_is_seen_follows_ieee_arithmetic(client, tensors):
  tensors[0][0, 1, 5, 0] = np.nan
  tensors[2][1, 0, 3, 2] = np.inf
  got = client.array(client.attention(*tensors).output)
  nan = np.isnan(got)
  assert nan[0, 1, 5].all()
  nan[0, 1, 5] = False
  assert not nan.any()
  assert np.all(got[1, :2, :, 2] == np.inf)
  assert np.isfinite(np.delete(got[1, :2], 2, axis=-1)).all()


def test_features(client):
  info = client.stub.GetServerInfo(client.pb.GetServerInfoRequest())
  assert 'backward' in info.features
  assert ('bf16_dot' in info.features) == info.isa.endswith('_bf16')
