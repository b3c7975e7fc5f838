"""Combines attention over disjoint sets of keys. This module makes no calls."""

import numpy as np

from attnd import tensors

_BLOCK_ELEMENTS = 1 << 18  # merged at a time: 2 MiB of an output in float64


def merge(parts, *, layout='bhsd'):
  """Combines attention over disjoint sets of keys to attention over all keys.

      parts = [client.attention(q, k[..., a:b, :], v[..., a:b, :], return_lse=True)
               for a, b in ((0, 1000), (1000, 1500))]
      output, lse = attnd.merge(parts)

  `parts` are AttentionResults or pairs (output, lse), of NumPy or PyTorch. The result
  has the kind of the first output, and can itself be a part of another merge. The
  shapes are those of the calls: output is [batch, heads, q_len, v_head_dim] in the
  `layout` of the calls, or lacks the leading axes. lse is [batch, heads, q_len] in
  both layouts. With weight[p] = exp(lse[p]), for each row:

      output = sum_p weight[p] * output[p] / sum_p weight[p]
      lse    = ln(sum_p weight[p])

  Each key can be in only one part, and only one of the calls can have sink_logits. A
  part with lse = -inf has seen no key, and its output is not read. If all parts are
  like this, output is 0 and lse is -inf. If the lse of a part is NaN or +inf, the
  output of the row is NaN, and its lse follows from the sum. A NaN or inf in the
  output of a part affects only its column.

  The sums are computed in float64, in the given order, and rounded once to float32,
  and from there to a 16-bit output. This adds half a unit in the last place to the
  errors of output and lse, and for a 16-bit output half a unit of float32 more. An
  error x in the lse of a part multiplies the weight of the part by exp(x).
  FlashAttention (Dao et al., 2022) combines its tiles in this way, after Milakov and
  Gimelshein, "Online normalizer calculation for softmax" (2018).
  """
  if layout not in ('bhsd', 'bshd'):
    raise ValueError(f'layout: expected bhsd or bshd, got {layout!r}')
  pairs = [_pair(f'parts[{i}]', part) for i, part in enumerate(_items(parts))]
  outputs = _arrays('output', [output for output, _ in pairs], tensors.FLOATS)
  lses = _arrays('lse', [lse for _, lse in pairs], ('float32',))
  shape = outputs[0].shape
  swap = layout == 'bshd' and len(shape) > 2
  lse_shape = (*shape[:-3], shape[-2], shape[-3]) if swap else shape[:-1]
  for i, (output, lse) in enumerate(zip(outputs, lses)):
    if output.shape != shape or not shape:
      raise ValueError(f'parts[{i}].output: expected the shape of the first, '
                       f'{shape}, with one axis or more, got {output.shape}')
    if lse.shape != lse_shape:
      raise ValueError(f'parts[{i}].lse: expected shape {lse_shape} for an '
                       f'output of {shape} in layout {layout}, got {lse.shape}')
  if swap:
    lses = [np.swapaxes(lse, -1, -2) for lse in lses]
  output, lse = _merged(outputs, lses)
  if swap:
    lse = np.ascontiguousarray(np.swapaxes(lse, -1, -2))
  first_output, first_lse = pairs[0]
  return tensors.like(output, first_output), tensors.like(lse, first_lse)


def _items(parts):
  try:
    items = list(parts)
  except TypeError:
    raise TypeError('parts: expected a sequence of results, got one '
                    f'{type(parts).__name__}') from None
  if not items:
    raise ValueError('parts: expected one part or more, got none')
  return items


def _pair(path, part):
  if isinstance(part, (tuple, list)) and len(part) == 2:
    output, lse = part
  elif hasattr(part, 'output') and hasattr(part, 'lse'):
    output, lse = part.output, part.lse
  else:
    raise TypeError(f'{path}: expected an AttentionResult or a pair (output, lse), '
                    f'got {type(part).__name__}')
  if lse is None:
    raise ValueError(f'{path}.lse: expected an array, got None; call attention '
                     'with return_lse=True')
  return output, lse


def _arrays(name, values, types):
  """Returns the values as NumPy arrays. All must have the same type, one of `types`."""
  arrays = []
  for i, value in enumerate(values):
    path = f'parts[{i}].{name}'
    tensors.refuse_losses(path, value)
    dtype, array = tensors.to_numpy(value)
    if dtype not in types:
      raise TypeError(f'{path}: expected {" or ".join(types)}, got {dtype}; pass '
                      'results of calls with the same output_dtype')
    types = (dtype,)
    arrays.append(array)
  return arrays


@np.errstate(all='ignore')  # invalid results become NaN, or are not read
def _merged(outputs, lses):
  """Returns the merged output and lse. `outputs` are arrays [..., v_head_dim], and
  `lses` are arrays [...]."""
  shape, rows = outputs[0].shape, lses[0].size
  outputs = [output.reshape(rows, shape[-1]) for output in outputs]
  lses = np.stack([lse.reshape(rows) for lse in lses])
  output = np.empty(outputs[0].shape, outputs[0].dtype)
  lse = np.empty(rows, np.float32)
  block = max(1, _BLOCK_ELEMENTS // max(1, shape[-1]))
  for start in range(0, rows, block):
    part = slice(start, start + block)
    output[part], lse[part] = _merged_rows([o[part] for o in outputs],
                                           lses[:, part])
  return output.reshape(shape), lse.reshape(shape[:-1])


def _merged_rows(outputs, lses):
  """Returns the merged output and lse in float32. `outputs` are arrays [rows,
  v_head_dim], and `lses` is an array [parts, rows]."""
  lses = lses.astype(np.float64)
  seen = lses != -np.inf
  largest = lses.max(axis=0)  # subtracted from all lses, so that no exp overflows
  weights = np.where(seen, np.exp(lses - largest), 0)
  total = weights.sum(axis=0)
  sums = np.zeros(outputs[0].shape)
  for output, weight, sees in zip(outputs, weights, seen):
    np.add(sums, weight[:, None] * output, out=sums, where=sees[:, None])
  sums /= total[:, None]
  # The formula gives ln(inf), although inf - inf above is NaN.
  lse = np.where(largest == np.inf, np.inf, largest + np.log(total))
  nothing = ~seen.any(axis=0)
  sums[nothing] = 0
  lse[nothing] = -np.inf
  return sums.astype(np.float32), lse
