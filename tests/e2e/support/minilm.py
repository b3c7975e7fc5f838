"""The real input of tests/data/minilm, and how large the error of an answer
can be."""

import dataclasses

import numpy as np

from support import reference
from support.stubs import REPOSITORY

FOLDER = REPOSITORY / 'tests' / 'data' / 'minilm'


@dataclasses.dataclass(frozen=True)
class Case:
  """One expected array, and the request that it belongs to."""
  title: str
  expected: str
  part: str  # of the response
  causal: str
  bound: float


# The bounds of the outputs are the errors of PyTorch's float32 kernel on the
# same data (tests/data/README.md). float32 stores an lse of up to 24 with a
# spacing of 1.9e-6. Its bound is twice that.
CASES = (
    Case('plain', 'expected', 'output', reference.NONE, 1.3e-6),
    Case('causal', 'expected_causal', 'output', reference.TOP_LEFT, 8.2e-7),
    Case('lse', 'expected_lse', 'lse', reference.NONE, 4e-6),
)


def path(name):
  return FOLDER / f'{name}.npy'


def load(name):
  return np.load(path(name))


def inputs():
  """Returns query, key and value: 12 heads, 331 tokens, head_dim 32."""
  return [load(name) for name in ('query', 'key', 'value')]
