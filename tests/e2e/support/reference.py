"""Computes attention and its gradients in float64 with NumPy, with every
option of the contract under its name, and says how large the error of an
answer can be."""

import numpy as np

NONE, TOP_LEFT, BOTTOM_RIGHT = 'none', 'top_left', 'bottom_right'
BHSD, BSHD = 'bhsd', 'bshd'


def attention(query, key, value, *, layout=BHSD, cu_seqlens_q=(),
              cu_seqlens_k=(), **options):
  """Returns (output, lse) in the shapes of the contract."""
  problem = _Problem(query, key, value, layout, cu_seqlens_q, cu_seqlens_k)
  output = np.zeros(problem.query.shape[:-1] + problem.value.shape[-1:])
  lse = np.full(problem.query.shape[:-1], -np.inf)
  for entry in problem.entries():
    weights, sums, _ = _weights(entry, **options)
    output[entry.rows] = weights @ entry.value
    lse[entry.rows] = sums
  return problem.restore(output), problem.restore_lse(lse)


def gradients(query, key, value, grad_output, *, layout=BHSD, cu_seqlens_q=(),
              cu_seqlens_k=(), **options):
  """Returns the gradients of query, key and value, in their shapes."""
  problem = _Problem(query, key, value, layout, cu_seqlens_q, cu_seqlens_k)
  of_output = problem.to_bhsd(grad_output)
  grads = [np.zeros(t.shape) for t in (problem.query, problem.key,
                                       problem.value)]
  for entry in problem.entries():
    weights, _, slope = _weights(entry, **options)
    of_rows = of_output[entry.rows]
    of_weights = of_rows @ np.swapaxes(entry.value, -1, -2)
    mean = np.sum(weights * of_weights, axis=-1, keepdims=True)
    of_products = weights * (of_weights - mean) * slope
    grads[0][entry.rows] = of_products @ entry.key
    for grad, of_heads in (
        (grads[1], np.swapaxes(of_products, -1, -2) @ entry.query),
        (grads[2], np.swapaxes(weights, -1, -2) @ of_rows)):
      heads, kv_heads = of_heads.shape[0], grad.shape[1]
      grad[entry.keys] = of_heads.reshape(
          kv_heads, heads // max(kv_heads, 1), *of_heads.shape[1:]).sum(axis=1)
  return tuple(problem.restore(grad) for grad in grads)


class _Problem:
  """The tensors as [batch, heads, seq, dim], and the places of the batch
  entries."""

  def __init__(self, query, key, value, layout, cu_seqlens_q, cu_seqlens_k):
    self.rank, self.layout = np.ndim(query), layout
    self.query, self.key, self.value = (
        self.to_bhsd(t) for t in (query, key, value))
    self.cu_seqlens_q, self.cu_seqlens_k = cu_seqlens_q, cu_seqlens_k

  def to_bhsd(self, tensor):
    tensor = np.asarray(tensor, np.float64)
    if self.rank == 2:
      return tensor[None, None]
    if self.layout == BSHD:
      tensor = np.swapaxes(tensor, -2, -3)
    return tensor if self.rank == 4 else tensor[None]

  def restore(self, tensor):
    if self.rank == 2:
      return tensor[0, 0]
    if self.layout == BSHD:
      tensor = np.swapaxes(tensor, -2, -3)
    return tensor if self.rank == 4 else tensor[0]

  def restore_lse(self, lse):
    return lse[(0,) * (4 - self.rank)]

  def entries(self):
    if not len(self.cu_seqlens_q):
      for b in range(self.query.shape[0]):
        yield _Entry(self, b, b, slice(None), slice(None))
      return
    cuts = (list(zip(cu[:-1], cu[1:]))
            for cu in (self.cu_seqlens_q, self.cu_seqlens_k))
    for index, (rows, keys) in enumerate(zip(*cuts)):
      yield _Entry(self, index, 0, slice(*rows), slice(*keys))


class _Entry:
  """One batch entry: its tensors, and their places in the whole."""

  def __init__(self, problem, index, batch, rows, keys):
    self.index = index
    self.rows = (batch, slice(None), rows)
    self.keys = (batch, slice(None), keys)
    self.query = problem.query[self.rows]
    group = problem.query.shape[1] // max(problem.key.shape[1], 1)
    self.key, self.value = (
        np.repeat(t[self.keys], group, axis=0)
        for t in (problem.key, problem.value))
    self.scores_shape = (problem.query.shape[0], problem.query.shape[1],
                         self.query.shape[1], self.key.shape[1])


def _weights(entry, *, causal=NONE, scale=None, temperature=1.0,
             query_offsets=(), window_left=None, window_right=None,
             logits_soft_cap=None, alibi_slopes=(), sink_logits=(), bias=None,
             mask=None, query_lengths=(), key_lengths=()):
  """Returns weights, lse, and d score / d (query . key) of one entry."""
  q_len, kv_len = entry.query.shape[1], entry.key.shape[1]
  listed = lambda numbers, other: (
      numbers[entry.index] if len(numbers) else other)
  seen_rows, seen_keys = listed(query_lengths, q_len), listed(
      key_lengths, kv_len)
  rows, keys = np.arange(q_len)[:, None], np.arange(kv_len)[None, :]
  if len(query_offsets):
    shift = query_offsets[0 if len(query_offsets) == 1 else entry.index]
  else:
    shift = seen_keys - seen_rows if causal == BOTTOM_RIGHT else 0
  at = rows + shift
  visible = (rows < seen_rows) & (keys < seen_keys)
  if causal != NONE:
    visible &= keys <= at
  far = 2**62  # larger numbers would overflow a sum
  if window_left is not None:
    visible &= keys >= at - min(window_left, far)
  if window_right is not None:
    visible &= keys <= at + min(window_right, far)

  scale = 1 / np.sqrt(entry.query.shape[-1]) if scale is None else scale
  slope = scale / temperature
  scores = slope * (entry.query @ np.swapaxes(entry.key, -1, -2))
  if logits_soft_cap is not None:
    bent = np.tanh(scores / logits_soft_cap)
    scores, slope = logits_soft_cap * bent, slope * (1 - bent**2)
  if len(alibi_slopes):
    slopes = np.asarray(alibi_slopes, np.float64)[:, None, None]
    scores = scores - slopes * np.abs(at - keys)
  of_entry = lambda t: np.broadcast_to(t, entry.scores_shape)[entry.index]
  if bias is not None:
    scores = scores + of_entry(np.asarray(bias, np.float64))
  if mask is not None:
    visible = visible & of_entry(np.asarray(mask, bool))
  scores = np.where(visible, scores, -np.inf)

  sinks = np.full((scores.shape[0], 1, 1), -np.inf)
  if len(sink_logits):
    sinks[:, 0, 0] = sink_logits
  top = np.maximum(np.max(scores, axis=-1, keepdims=True, initial=-np.inf),
                   sinks)
  top = np.where(np.isinf(top), 0, top)
  weights = np.exp(scores - top)
  total = weights.sum(axis=-1, keepdims=True) + np.exp(sinks - top)
  with np.errstate(divide='ignore'):
    lse = top + np.log(total)
  return weights / np.where(total > 0, total, 1), lse[..., 0], slope


def error_bound(value):
  """Returns the error bound for inputs of about unit variance, whose scores
  are below about 10.

  A score s has an error of s * eps, which exp turns into a relative error of
  its weight. The weights and their sum add a few eps.
  """
  largest = float(np.max(np.abs(value), initial=1))
  return 32 * np.finfo(np.float32).eps * largest


def assert_close(got, expected, bound):
  """Requires equal shapes, infinities in the same places, and other numbers
  within the bound."""
  assert got.shape == expected.shape, f'{got.shape}, not {expected.shape}'
  finite = np.isfinite(expected)
  assert np.array_equal(got[~finite], expected[~finite].astype(got.dtype))
  worst = np.max(np.abs(got[finite] - expected[finite]), initial=0)
  assert worst <= bound, f'off by {worst:.3g}, allowed is {bound:.3g}'
