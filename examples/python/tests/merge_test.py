"""Compares merged parts with attention over all keys by a real server, and with
the formula computed in Python."""

import itertools
import math
import random

import attnd
import ml_dtypes
import numpy as np
import pytest

from support import reference

INF, NAN = math.inf, math.nan


@pytest.fixture
def rng():
  seed = random.getrandbits(32)
  print(f'seed {seed}')  # pytest shows it if a test fails
  return np.random.default_rng(seed)


def tensors_of(rng, *shapes, dtype=np.float32):
  return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def pieces(rng, keys, count):
  """Divides the keys into `count` uneven parts, each as (begin, end)."""
  cuts = np.sort(rng.choice(np.arange(1, keys), count - 1, replace=False))
  return list(itertools.pairwise([0, *cuts.tolist(), keys]))


@pytest.mark.parametrize('count', [1, 2, 3, 4, 5])
def test_parts_are_attention_over_all_keys(server, rng, count):
  """Grouped heads, a bias, and a mask that hides all keys from some rows, and
  all keys of a part from others. The sink is in the last call alone."""
  query, key, value, bias = tensors_of(
      rng, (2, 4, 37, 16), (2, 2, 90, 16), (2, 2, 90, 24), (4, 37, 90))
  mask = rng.random((37, 90)) < 0.5
  mask[3] = False
  mask[5, 20:] = False
  sinks = rng.standard_normal(4).astype(np.float32)
  for sink_logits in ([], sinks):
    parts = []
    with attnd.Client(server.tcp) as client:
      for begin, end in pieces(rng, 90, count):
        parts.append(client.attention(
            query, key[..., begin:end, :], value[..., begin:end, :],
            bias=bias[..., begin:end], mask=mask[..., begin:end],
            sink_logits=sink_logits if end == 90 else [], return_lse=True))
      whole = client.attention(query, key, value, bias=bias, mask=mask,
                               sink_logits=sink_logits, return_lse=True)
    output, lse = attnd.merge(parts)
    exact = reference.attention(query, key, value, bias=bias, mask=mask,
                                sink_logits=sink_logits)
    # By docs/numerics.md, the errors of the parts count twice.
    bound = reference.error_bound(value)
    for got, at_once, expected in ((output, whole.output, exact[0]),
                                   (lse, whole.lse, exact[1])):
      assert got.dtype == np.float32
      reference.assert_close(got, expected, 2 * bound)
      reference.assert_close(got, at_once, 3 * bound)
    assert (output[:, :, 3] == 0).all()


@pytest.mark.parametrize('shape', [(2, 4, 9, 8), (4, 9, 8), (9, 8), (9, 9, 8)])
@pytest.mark.parametrize('layout', ['bhsd', 'bshd'])
def test_layouts_and_causal_parts(server, rng, shape, layout):
  """query_offsets say where the rows are, seen from a part's first key. The rows
  before it see none of its keys."""
  query, key, value = tensors_of(rng, shape, shape, shape)
  axis = -3 if layout == 'bshd' and len(shape) > 2 else -2
  keys = shape[axis]
  with attnd.Client(server.tcp) as client:
    parts = [
        client.attention(query, np.take(key, range(*piece), axis),
                         np.take(value, range(*piece), axis), layout=layout,
                         causal='top_left', query_offsets=[-piece[0]],
                         return_lse=True) for piece in pieces(rng, keys, 3)]
  assert np.isneginf(parts[1].lse).any()
  output, lse = attnd.merge(parts, layout=layout)
  exact = reference.attention(query, key, value, layout=layout,
                              causal='top_left')
  reference.assert_close(output, exact[0], 2 * reference.error_bound(value))
  reference.assert_close(lse, exact[1], 2 * reference.error_bound(value))
  assert lse.flags.c_contiguous and output.flags.c_contiguous


@pytest.mark.parametrize('kind', ['float16', 'bfloat16'])
@pytest.mark.parametrize('library', ['numpy', 'torch'])
def test_16_bits(server, rng, kind, library):
  inputs = tensors_of(rng, (3, 20, 8), (3, 50, 8), (3, 50, 8),
                      dtype=np.dtype(getattr(ml_dtypes, kind, kind)))
  exact = reference.attention(*inputs)
  # The part is rounded once, and the merged result once more.
  step = {'float16': 2**-11, 'bfloat16': 2**-8}[kind]
  bound = 2 * reference.error_bound(inputs[2].astype(float)) + (
      2 * step * np.abs(inputs[2].astype(float)).max())
  if library == 'torch':
    torch = pytest.importorskip('torch')
    inputs = [torch.from_numpy(i.astype(np.float32)).to(getattr(torch, kind))
              for i in inputs]
  query, key, value = inputs
  with attnd.Client(server.tcp) as client:
    parts = [client.attention(query, key[:, cut], value[:, cut],
                              return_lse=True)
             for cut in (slice(13), slice(13, 50))]
  output, lse = attnd.merge(parts)
  assert output.dtype == query.dtype
  if library == 'torch':
    assert lse.dtype == torch.float32
    output, lse = output.float().numpy(), lse.numpy()
  reference.assert_close(output.astype(np.float64), exact[0], bound)
  reference.assert_close(lse, exact[1], 2 * reference.error_bound(1))


def by_the_rule(parts):
  """merge() of one row, in Python's own numbers."""
  seen = [(output, lse) for output, lse in parts if lse != -INF]
  if not seen:
    return [0.0] * len(parts[0][0]), -INF
  if any(math.isnan(lse) for _, lse in seen):
    return [NAN] * len(parts[0][0]), NAN
  top = max(lse for _, lse in seen)
  if top == INF:
    return [NAN] * len(parts[0][0]), INF
  weights = [math.exp(lse - top) for _, lse in seen]
  columns = zip(*(output for output, _ in seen))
  return [sum(w * x for w, x in zip(weights, column)) / sum(weights)
          for column in columns], top + math.log(sum(weights))


def test_the_rule_whatever_the_parts_hold(rng):
  """-inf, inf, NaN, and an lse whose exp overflows. The output of a part that saw
  no key is not read."""
  lses = rng.choice([-INF, -INF, INF, NAN, -1e4, 0, 1, 88.5, 1e4, 1e4 + 0.5],
                    (3, 400), p=[.2, .15, .03, .03, *[.59 / 6] * 6]
                   ).astype(np.float32)
  outputs = rng.choice([0, 1, -2.5, 1e30, NAN, INF], (3, 400, 5),
                       p=[.2, .3, .3, .1, .05, .05]).astype(np.float32)
  outputs[lses == -INF] = rng.choice([NAN, INF, 3])
  with np.errstate(all='raise'):  # it does not warn either
    output, lse = attnd.merge(zip(outputs, lses))
  with np.errstate(all='ignore'):
    expected = [by_the_rule([(outputs[p, row].tolist(), float(lses[p, row]))
                             for p in range(3)]) for row in range(400)]
  np.testing.assert_allclose(output, [o for o, _ in expected], rtol=2**-23,
                             atol=2**-149)
  np.testing.assert_allclose(lse, [l for _, l in expected], rtol=2**-23,
                             atol=2**-149)


def test_what_the_merge_adds_is_one_rounding(rng):
  # These are more rows than one block of the merge has.
  outputs = tensors_of(rng, *[(2, 3, 700, 128)] * 3)
  lses = tensors_of(rng, *[(2, 3, 700)] * 3)
  weights = np.exp(np.array(lses, np.longdouble))
  exact = sum(w[..., None] * o for w, o in zip(weights, outputs)) / sum(
      weights)[..., None]
  for dtype in (np.float32, np.float16):
    output, lse = attnd.merge(
        [(o.astype(dtype), l) for o, l in zip(outputs, lses)])
    if dtype is np.float32:
      assert (np.abs(output - exact) <= 0.501 * np.spacing(np.abs(output))).all()
    assert output.dtype == dtype
  exact_lse = np.log(sum(weights))
  assert (np.abs(lse - exact_lse) <= 0.501 * np.spacing(np.abs(lse))).all()


def test_a_merge_is_a_part(rng):
  outputs = tensors_of(rng, *[(6, 4)] * 3)
  parts = list(zip(outputs, tensors_of(rng, *[(6,)] * 3)))
  at_once = attnd.merge(parts)
  in_turn = attnd.merge([attnd.merge(parts[:2]), parts[2]])
  for a, b in zip(at_once, in_turn):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
  one, _ = attnd.merge(parts[:1])
  np.testing.assert_array_equal(one, outputs[0])


@pytest.mark.parametrize('shape', [(0, 4), (2, 0, 4), (3, 0)])
def test_empty_parts(shape):
  part = np.ones(shape, np.float32), np.zeros(shape[:-1], np.float32)
  output, lse = attnd.merge([part, part])
  assert (output.shape, lse.shape) == (shape, shape[:-1])


def test_parts_stay_as_they_are(rng):
  output, lse = tensors_of(rng, (6, 4), (6,))
  copies = output.copy(), lse.copy()
  attnd.merge([(output, lse), (output, lse)])
  np.testing.assert_array_equal(output, copies[0])
  np.testing.assert_array_equal(lse, copies[1])


O, L = np.ones((2, 3, 4), np.float32), np.zeros((2, 3), np.float32)


@pytest.mark.parametrize('parts, kind, text', [
    ([], ValueError, 'parts: expected one part or more, got none'),
    (7, TypeError, 'parts: expected a sequence of results, got one int'),
    (attnd.AttentionResult(O, L, None), TypeError,
     'parts: expected a sequence of results, got one AttentionResult'),
    ((O, L), TypeError, r'parts\[0\]: expected an AttentionResult or a pair '
     r'\(output, lse\), got ndarray'),
    ([(O, L), attnd.AttentionResult(O, None, None)], ValueError,
     r'parts\[1\]\.lse: expected an array, got None; .* return_lse=True'),
    ([(O, L), (O[:, :2], L)], ValueError, r'parts\[1\]\.output: expected the shape '
     r'of the first, \(2, 3, 4\), .* got \(2, 2, 4\)'),
    ([(O, L), (O, L[:1])], ValueError, r'parts\[1\]\.lse: expected shape \(2, 3\) '
     r'for an output of \(2, 3, 4\) in layout bhsd, got \(1, 3\)'),
    ([(L[0, 0], L)], ValueError, r'parts\[0\]\.output: .* one axis or more'),
    ([(O.astype(float), L)], TypeError,
     r'parts\[0\]\.output: expected float32 or float16 or bfloat16, got float64'),
    ([(O.astype(np.float16), L), (O, L)], TypeError,
     r'parts\[1\]\.output: expected float16, got float32; .* the same output_dtype'),
    ([(O, L.astype(np.float16))], TypeError,
     r'parts\[0\]\.lse: expected float32, got float16'),
    ([(O, np.ma.masked_array(L))], TypeError,
     r'parts\[0\]\.lse: expected an array without a mask'),
])
def test_what_cannot_be_merged(parts, kind, text):
  with pytest.raises(kind, match=text):
    attnd.merge(parts)


def test_layouts_are_not_mixed_up():
  with pytest.raises(ValueError, match=r'lse: .*\(3, 2\) .* layout bshd'):
    attnd.merge([(O, L)], layout='bshd')
  with pytest.raises(ValueError, match="layout: expected bhsd or bshd, got 'x'"):
    attnd.merge([(O, L)], layout='x')


def test_no_gradient_is_lost_in_a_merge():
  torch = pytest.importorskip('torch')
  part = torch.ones(2, 3, requires_grad=True), torch.zeros(2)
  with pytest.raises(ValueError, match=r'parts\[0\]\.output: .* no gradient'):
    attnd.merge([part])
  with torch.no_grad():
    output, _ = attnd.merge([part])
  assert torch.equal(output, torch.ones(2, 3))
