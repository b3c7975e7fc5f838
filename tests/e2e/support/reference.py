"""Attention in float64 by NumPy, and how far float32 may be from it."""

import numpy as np

NONE, TOP_LEFT, BOTTOM_RIGHT = 'none', 'top_left', 'bottom_right'


def attention(query, key, value, *, causal=NONE, scale=None, temperature=1.0):
  """Returns (output, lse) of [..., heads, seq, dim] tensors of equal rank."""
  q, k, v = (np.asarray(t, np.float64) for t in (query, key, value))
  if q.ndim > 2:
    group = q.shape[-3] // max(k.shape[-3], 1)
    k, v = (np.repeat(t, group, axis=-3) for t in (k, v))
  scale = 1 / np.sqrt(q.shape[-1]) if scale is None else scale
  scores = scale / temperature * (q @ np.swapaxes(k, -1, -2))
  scores = np.where(_visible(*scores.shape[-2:], causal), scores, -np.inf)
  top = np.max(scores, axis=-1, keepdims=True, initial=-np.inf)
  weights = np.exp(scores - np.where(np.isinf(top), 0, top))
  total = weights.sum(axis=-1, keepdims=True)
  seen = total > 0
  output = np.where(seen, (weights @ v) / np.where(seen, total, 1), 0)
  with np.errstate(divide='ignore'):
    lse = np.where(seen, top + np.log(total), -np.inf)
  return output, lse[..., 0]


def _visible(q_len, kv_len, causal):
  rows, keys = np.arange(q_len)[:, None], np.arange(kv_len)[None, :]
  if causal == NONE:
    return np.ones((q_len, kv_len), bool)
  return keys <= rows + (kv_len - q_len if causal == BOTTOM_RIGHT else 0)


def error_bound(value):
  """For inputs of about unit variance, whose scores stay below about 10.

  A score of s carries s * eps, which exp passes on as a relative error of its
  weight; weights and their sum add a few eps more.
  """
  largest = float(np.max(np.abs(value), initial=1))
  return 32 * np.finfo(np.float32).eps * largest


def assert_close(got, expected, bound):
  """Equal shapes, infinities in the same places, the rest within bound."""
  assert got.shape == expected.shape, f'{got.shape}, not {expected.shape}'
  finite = np.isfinite(expected)
  assert np.array_equal(got[~finite], expected[~finite].astype(got.dtype))
  worst = np.max(np.abs(got[finite] - expected[finite]), initial=0)
  assert worst <= bound, f'off by {worst:.3g}, allowed is {bound:.3g}'
