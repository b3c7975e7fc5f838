#!/usr/bin/env python3
"""Compares a real attnd with PyTorch's scaled_dot_product_attention.

Both compute the same random tensors. The program compares both with the
formula in float64, prints the worst and the root-mean-square error of each,
and fails if attnd's error is larger.
"""

import argparse
import collections
import dataclasses
import math
import pathlib
import sys

import torch
from torch.nn import functional

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'e2e'))
from support import stubs as stubs_module  # pylint: disable=wrong-import-position
from support.server import Server, open_channel  # pylint: disable=wrong-import-position

SEEDS = range(6)
TIMEOUT_SECONDS = 300

# How much larger an error can be. The worst of about 100,000 rounding errors is
# mostly chance: the worst errors of the plain formula in f32 and of PyTorch's
# blocked kernels differ here by a factor of up to 1.97 in both directions.
# Their mean square is more meaningful.
WORST_MARGIN = 2
RMS_MARGIN = 1.05

DTYPES = {'f32': torch.float32, 'f16': torch.float16, 'bf16': torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Case:
  """One kind of attention, with the options of both sides."""
  name: str
  q_heads: int = 4
  kv_heads: int = 4
  q_len: int = 160
  kv_len: int = 230
  head_dim: int = 64
  v_head_dim: int = 64
  causal: bool = False  # top-left, as PyTorch's is_causal
  mask: str = ''  # '', 'bool' or 'float'
  backward: bool = True


CASES = [
    Case('plain'),
    Case('long rows', q_len=16, kv_len=4096),
    Case('causal', q_len=200, kv_len=200, causal=True),
    Case('bool mask', mask='bool'),
    Case('float bias', mask='float'),
    Case('grouped heads', q_heads=8, kv_heads=2),
    Case('v_head_dim 24', v_head_dim=24),
    Case('head_dim 128', head_dim=128, v_head_dim=128),
]


class Attnd:
  """Calls attnd with tensors of PyTorch."""

  def __init__(self, stubs, channel):
    self.pb, pb_grpc = stubs
    self.stub = pb_grpc.AttentionServiceStub(channel)
    self._types = {
        torch.float32: self.pb.DATA_TYPE_F32,
        torch.float16: self.pb.DATA_TYPE_F16,
        torch.bfloat16: self.pb.DATA_TYPE_BF16,
        torch.bool: self.pb.DATA_TYPE_BOOL,
    }

  def tensor(self, tensor):
    tensor = tensor.detach().contiguous()
    return self.pb.Tensor(
        dtype=self._types[tensor.dtype], shape=tensor.shape,
        data=tensor.view(torch.uint8).numpy().tobytes())

  def array(self, message):
    dtype = next(t for t, x in self._types.items() if x == message.dtype)
    flat = torch.frombuffer(bytearray(message.data), dtype=dtype)
    return flat.reshape(tuple(message.shape))

  def _options(self, case, mask):
    options = self.pb.AttentionOptions(return_lse=True)
    if case.causal:
      options.causal = self.pb.CAUSAL_TOP_LEFT
    if case.mask == 'bool':
      options.mask.CopyFrom(self.tensor(mask))
    elif case.mask == 'float':
      options.bias.CopyFrom(self.tensor(mask))
    return options

  def forward(self, case, query, key, value, mask):
    """Returns the response's message."""
    return self.stub.Attention(
        self.pb.AttentionRequest(
            query=self.tensor(query), key=self.tensor(key),
            value=self.tensor(value), options=self._options(case, mask)),
        timeout=TIMEOUT_SECONDS)

  def backward(self, case, query, key, value, mask, answer, grad_output):
    """Returns the gradients of query, key and value."""
    response = self.stub.AttentionBackward(
        self.pb.AttentionBackwardRequest(
            query=self.tensor(query), key=self.tensor(key),
            value=self.tensor(value), output=answer.output, lse=answer.lse,
            grad_output=self.tensor(grad_output),
            options=self._options(case, mask)),
        timeout=TIMEOUT_SECONDS)
    return [
        self.array(x) for x in
        (response.grad_query, response.grad_key, response.grad_value)
    ]


def exact(case, query, key, value, mask):
  """Computes the formula in float64, from the numbers that both sides get."""
  group = case.q_heads // case.kv_heads
  key = key.repeat_interleave(group, dim=1)
  value = value.repeat_interleave(group, dim=1)
  scores = query @ key.transpose(-1, -2) / math.sqrt(case.head_dim)
  if case.mask == 'float':
    scores = scores + mask
  elif case.mask == 'bool':
    scores = scores.masked_fill(~mask, -math.inf)
  if case.causal:
    seen = torch.ones(case.q_len, case.kv_len, dtype=torch.bool).tril()
    scores = scores.masked_fill(~seen, -math.inf)
  return torch.softmax(scores, dim=-1) @ value


def peer(case, query, key, value, mask):
  return functional.scaled_dot_product_attention(
      query, key, value, attn_mask=mask, is_causal=case.causal,
      enable_gqa=case.q_heads != case.kv_heads)


def draw(case, dtype, seed):
  """Returns query, key, value, mask and the gradient of the output."""
  random = torch.Generator().manual_seed(seed)
  normal = lambda *shape: torch.randn(*shape, generator=random).to(dtype)
  query = normal(2, case.q_heads, case.q_len, case.head_dim)
  key = normal(2, case.kv_heads, case.kv_len, case.head_dim)
  value = normal(2, case.kv_heads, case.kv_len, case.v_head_dim)
  mask = None
  if case.mask == 'bool':
    mask = torch.rand(
        2, 1, case.q_len, case.kv_len, generator=random) < 0.7
    mask[..., 0] = True  # PyTorch does not define rows that see nothing
  elif case.mask == 'float':
    mask = normal(1, case.q_heads, case.q_len, case.kv_len)
  return query, key, value, mask, normal(
      2, case.q_heads, case.q_len, case.v_head_dim)


class Errors:
  """The errors of one case over all seeds: for each tensor, those of attnd and
  of PyTorch."""

  def __init__(self):
    self._squares = collections.defaultdict(float)
    self._counts = collections.defaultdict(int)
    self._worst = collections.defaultdict(float)

  def add(self, what, side, got, want):
    assert got.shape == want.shape, f'{side}: {got.shape}, not {want.shape}'
    error = (got.detach().to(torch.float64) - want.detach()).abs()
    worst = error.max().item()
    # max() keeps the first of two numbers if one is NaN.
    if math.isnan(worst) or worst > self._worst[what, side]:
      self._worst[what, side] = worst
    self._squares[what, side] += error.square().sum().item()
    self._counts[what, side] += error.numel()

  def rows(self):
    """Yields (what, our worst, their worst, our rms, their rms)."""
    for what in dict.fromkeys(what for what, _ in self._counts):
      worst = [self._worst[what, side] for side in ('ours', 'theirs')]
      rms = [
          math.sqrt(self._squares[what, side] / self._counts[what, side])
          for side in ('ours', 'theirs')
      ]
      yield what, *worst, *rms


def measure(attnd, case, dtype):
  errors = Errors()
  for seed in SEEDS:
    query, key, value, mask, grad_output = draw(case, dtype, seed)
    wide = [x.double().requires_grad_() for x in (query, key, value)]
    wide_mask = mask.double() if case.mask == 'float' else mask
    want = exact(case, *wide, wide_mask)
    answer = attnd.forward(case, query, key, value, mask)
    errors.add('output', 'ours', attnd.array(answer.output), want)
    inputs = [x.requires_grad_() for x in (query, key, value)]
    theirs = peer(case, *inputs, mask)
    errors.add('output', 'theirs', theirs, want)
    if dtype != torch.float32 or not case.backward:
      continue
    names = ('grad_query', 'grad_key', 'grad_value')
    wants = torch.autograd.grad(want, wide, grad_output.double())
    ours = attnd.backward(
        case, query, key, value, mask, answer, grad_output)
    theirs = torch.autograd.grad(theirs, inputs, grad_output)
    for name, our, their, expected in zip(names, ours, theirs, wants):
      errors.add(name, 'ours', our, expected)
      errors.add(name, 'theirs', their, expected)
  return errors


def compare(attnd):
  """Prints the table. Returns the rows in which attnd's error is larger."""
  print(f'errors against float64, {len(SEEDS)} seeds, PyTorch '
        f'{torch.__version__} ({torch.get_num_threads()} threads)')
  line = '{:14} {:5} {:11} {:>10} {:>10} {:>10} {:>10}  {}'
  print(line.format('case', 'type', 'tensor', 'worst', 'PyTorch', 'rms',
                    'PyTorch', ''))
  larger = []
  for type_name, dtype in DTYPES.items():
    for case in CASES:
      for row in measure(attnd, case, dtype).rows():
        what, worst, their_worst, rms, their_rms = row
        # The comparison is written so that a NaN of attnd fails.
        good = (worst <= WORST_MARGIN * their_worst and
                rms <= RMS_MARGIN * their_rms)
        print(line.format(
            case.name, type_name, what,
            *(f'{x:.3g}' for x in (worst, their_worst, rms, their_rms)),
            '' if good else 'LARGER'))
        if not good:
          larger.append((case.name, type_name, what))
  return larger


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--build', required=True, type=pathlib.Path)
  build = parser.parse_args().build
  stubs = stubs_module.load(build)
  with Server(build / 'server' / 'attnd') as server:
    with open_channel(server.tcp) as channel:
      larger = compare(Attnd(stubs, channel))
  if larger:
    sys.exit(f'attnd\'s error is the larger in {len(larger)} rows: {larger}')
  print("attnd's errors are no larger than PyTorch's, within "
        f'{WORST_MARGIN} (worst) and {RMS_MARGIN} (rms)')


if __name__ == '__main__':
  main()
