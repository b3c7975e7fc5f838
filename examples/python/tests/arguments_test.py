"""Refusals of arguments that a message cannot hold or would change, and what they
say. Also unusual kinds of arrays, which are taken."""

import decimal
import io
import re
import sys

import attnd
from attnd import tensors
from attnd.v1 import attention_pb2 as pb
import ml_dtypes
import numpy as np
import pytest

from message_test import Recorder, ROW

INTS, DOUBLES = np.ones((1, 4), np.int64), np.ones((1, 4))


def ask(**arguments):
  """The request of an attention call with some arguments replaced."""
  return Recorder().attention(
      **{'query': ROW, 'key': ROW, 'value': ROW} | arguments)


def saved_and_loaded(array):
  file = io.BytesIO()
  np.save(file, array)
  file.seek(0)
  return np.load(file)


class Unreadable:
  """Stands for an array of a library that keeps its data on another device."""

  def __array__(self, dtype=None, copy=None):
    raise TypeError('it is on another device; use .get()')


class Sparse:
  """Stands for a matrix of scipy.sparse."""

  def toarray(self):
    return ROW


MASKED = np.ma.masked_array(ROW, [[True, False, False, False]])
BFLOAT16 = ROW.astype(ml_dtypes.bfloat16)

FLOATS = 'expected float32, float16 or bfloat16, got'
MASK = 'expected bool, got'
WHOLE = 'expected a whole number (int64), got'
NUMBER = 'expected a number (float32), got'
CONVERT = 'convert it explicitly, for example by'
AS_INT = f'{CONVERT} int() or .astype("int64")'
NOT_MASKED = 'expected an array without a mask of its own, got'
FILLED = ('use .filled() to choose the values of its masked elements, and mask= to '
          'hide keys')
DTYPE = 'expected one of float32, float16, bfloat16, or a dtype of NumPy, ' \
        'ml_dtypes or PyTorch, got'

# The path of the wrong field, the argument, and the beginning of the error.
WRONG_TYPES = [
    # Tensors of floats.
    ('key', DOUBLES, f'{FLOATS} float64; {CONVERT} .astype("float32")'),
    ('value', INTS, f'{FLOATS} int64; {CONVERT} .astype("float32")'),
    ('query', BFLOAT16.view(np.uint16),
     f'{FLOATS} uint16; use .view(ml_dtypes.bfloat16) for the bits of bfloat16, '
     'and .astype("float32") otherwise'),
    ('query', BFLOAT16.view(np.int16),
     f'{FLOATS} int16; use .view(ml_dtypes.bfloat16) for the bits of bfloat16, '
     'and .astype("float32") otherwise'),
    ('query', saved_and_loaded(BFLOAT16),
     f'{FLOATS} void16; use .view(ml_dtypes.bfloat16) if bfloat16 was saved, '
     'because numpy.load does not know this type'),
    ('query', ROW.astype(ml_dtypes.float8_e4m3fn),
     f'{FLOATS} float8_e4m3fn; {CONVERT} .astype("float32")'),
    ('query', None, f'{FLOATS} NoneType (of object); pass an array of numbers'),
    ('value', None, f'{FLOATS} NoneType (of object); pass an array of numbers'),
    ('query', ROW * 1j, f'{FLOATS} complex64; use real numbers, for example '
     'by .real, because attention has no complex numbers'),
    ('query', ROW.astype(object), f'{FLOATS} object; pass an array of numbers'),
    ('query', np.array([['a']]), f'{FLOATS} str32; pass an array of numbers'),
    ('query', np.zeros(2, 'f4,f4'), f'{FLOATS} void64; pass an array of numbers'),
    ('query', ROW > 0, f'{FLOATS} bool; {CONVERT} .astype("float32")'),
    ('query', [[1.0, 2.0]], f'{FLOATS} list (of float64); {CONVERT} '
     'numpy.asarray(x, "float32")'),
    ('query', 1.0, f'{FLOATS} float (of float64); {CONVERT} '
     'numpy.asarray(x, "float32")'),
    ('query', [[1.0], [1.0, 2.0]],
     'expected an array, got list, which NumPy refuses: setting an array'),
    ('query', Unreadable(), 'expected an array, got Unreadable, which NumPy '
     'refuses: it is on another device; use .get()'),
    ('query', Sparse(), f'{FLOATS} Sparse (of object); use .toarray()'),
    ('bias', ROW > 0, f'{FLOATS} bool; use mask= for an array that is True if '
     'a key is visible'),
    ('bias', DOUBLES, f'{FLOATS} float64; {CONVERT} .astype("float32")'),
    # Masks.
    ('mask', INTS, f'{MASK} int64; use .astype(bool) if nonzero means visible'),
    ('mask', ROW, f'{MASK} float32; use bias= for numbers that are added to the '
     'scores, such as 0 and -inf, or .astype(bool) if nonzero means visible'),
    ('mask', DOUBLES, f'{MASK} float64; use bias= for numbers that are added'),
    ('mask', [[0, 1]], f'{MASK} list (of int64); use numpy.asarray(x, bool)'),
    ('mask', np.array([[None]]),
     f'{MASK} object; pass an array of bool that is True if the key is visible'),
    # Masked arrays, as every kind of argument.
    ('key', MASKED, f'{NOT_MASKED} MaskedArray; {FILLED}'),
    ('key', [MASKED], f'{NOT_MASKED} MaskedArray; {FILLED}'),
    ('mask', MASKED > 0, f'{NOT_MASKED} MaskedArray; {FILLED}'),
    ('key_lengths', np.ma.masked_array([3], [True]),
     f'{NOT_MASKED} MaskedArray; {FILLED}'),
    ('scale', np.ma.masked, f'{NOT_MASKED} MaskedConstant; {FILLED}'),
    ('output_region', MASKED, f'{NOT_MASKED} MaskedArray; {FILLED}'),
    # Lists of numbers.
    ('key_lengths[1]', [3, 2.0], f'{WHOLE} 2.0 (float); {AS_INT}'),
    ('query_lengths[0]', np.array([2.5]), f'{WHOLE} 2.5 (float); {AS_INT}'),
    ('query_offsets[0]', [np.nan], f'{WHOLE} nan (float); {AS_INT}'),
    ('cu_seqlens_q[0]', np.array([0, 4], np.float32),
     f'{WHOLE} 0.0 (float); {AS_INT}'),
    ('cu_seqlens_k[0]', '04', f"{WHOLE} '04' (str)"),
    ('key_lengths[0]', [True], f'{WHOLE} True (bool)'),
    ('key_lengths[0]', np.array([True]), f'{WHOLE} True (bool)'),
    ('key_lengths[0]', [None], f'{WHOLE} None (NoneType)'),
    ('key_lengths[0]', {3}, f'{WHOLE} {{3}} (set)'),
    ('alibi_slopes[0]', ['0.5'], f"{NUMBER} '0.5' (str)"),
    ('sink_logits[1]', [0.5, None], f'{NUMBER} None (NoneType)'),
    # Single values.
    ('scale', 'a', f"{NUMBER} 'a' (str)"),
    ('scale', True, f'{NUMBER} True (bool)'),
    ('scale', 1j, f'{NUMBER} 1j (complex)'),
    ('scale', np.ones(1), f'{NUMBER} array([1.]) (ndarray)'),
    ('window_left', 1.5, f'{WHOLE} 1.5 (float); {AS_INT}'),
    ('window_left', True, f'{WHOLE} True (bool)'),
    ('window_right', '1', f"{WHOLE} '1' (str)"),
    ('return_lse', 1, 'expected True or False, got 1 (int)'),
    ('return_lse', 'no', "expected True or False, got 'no' (str)"),
    ('output_region.handle', {'handle': 'x'}, "expected bytes, got 'x' (str)"),
    ('output_region', 'x', "expected a dict of fields, got 'x' (str)"),
]
WRONG_VALUES = [
    ('causal', True, 'expected one of top_left, bottom_right, got True (bool); '
     'with top_left, the first query sees only the first key; with bottom_right, the '
     'last query sees the last key; None means no causal rule'),
    ('causal', 'topleft', 'expected one of top_left, bottom_right, got '
     "'topleft' (str); did you mean top_left?"),
    ('layout', 'BSND', "expected one of bhsd, bshd, got 'BSND' (str); did you "
     'mean bshd?'),
    ('output_dtype', np.float64, f"{DTYPE} <class 'numpy.float64'> (type)"),
    ('output_dtype', 'fp16', f"{DTYPE} 'fp16' (str)"),
    ('output_dtype', np.dtype('int8'), f"{DTYPE} dtype('int8')"),
    ('scale', 1e39, f'{NUMBER} 1e+39 (float)'),
    ('sink_logits[1]', [0, -1e39], f'{NUMBER} -1e+39 (float)'),
    ('window_left', 2**63, f'{WHOLE} 9223372036854775808 (int)'),
    ('key_lengths[0]', np.array([2**63], np.uint64),
     f'{WHOLE} 9223372036854775808 (int)'),
]


@pytest.mark.parametrize(
    'kind, path, value, text',
    [(TypeError, *case) for case in WRONG_TYPES] +
    [(ValueError, *case) for case in WRONG_VALUES],
    ids=[f'{path} {text[-40:]}' for path, _, text in WRONG_TYPES + WRONG_VALUES])
def test_refusals_fit_the_argument(kind, path, value, text):
  argument = re.match(r'\w+', path)[0]
  if argument not in ('query', 'key', 'value'):
    path = f'options.{path}'
  with pytest.raises(kind) as caught:
    ask(**{argument: value})
  assert str(caught.value).startswith(f'{path}: {text}')


@pytest.mark.parametrize('name, near', [
    ('windowleft', 'window_left'), ('is_causal', 'causal'),
    ('softmax_scale', 'scale'), ('attn_mask', 'mask'), ('alibi', 'alibi_slopes'),
    ('dtype', 'output_dtype'), ('soft_cap', 'logits_soft_cap')])
def test_unknown_options_name_the_nearest(name, near):
  with pytest.raises(TypeError,
                     match=rf'^options\.{name}: no such field; did you mean '
                     rf'{near}\?; the fields are scale, '):
    ask(**{name: 1})


def test_unknown_options_that_resemble_none():
  with pytest.raises(TypeError, match='options.dropout_p: no such field; the '):
    ask(dropout_p=0.1)
  with pytest.raises(TypeError, match='^seqlen: no such field; did you mean seq_'):
    Recorder().memory_estimate(seqlen=4)
  with pytest.raises(TypeError, match='^options: expected a dict of fields, got '):
    Recorder().memory_estimate(options='causal')


@pytest.mark.parametrize('name, value, expected', [
    ('key_lengths', np.array([[3], [4]], np.uint8), [3, 4]),
    ('key_lengths', (np.int32(3), 4), [3, 4]),
    ('key_lengths', range(2), [0, 1]),
    ('query_offsets', 5, [5]),
    ('query_offsets', np.array(5, '>i8'), [5]),
    ('alibi_slopes', [1, np.float32(0.5), decimal.Decimal('0.25')],
     [1, 0.5, 0.25]),
    ('sink_logits', np.array([0.5, -np.inf], np.float16), [0.5, -np.inf]),
    ('scale', np.array(0.5), 0.5),
    ('scale', np.inf, np.inf),  # the server refuses these
    ('window_left', np.array(3), 3),
    ('return_lse', np.True_, True),
])
def test_what_is_taken_for_a_number(name, value, expected):
  assert getattr(ask(**{name: value}).options, name) == expected


def test_bfloat16_without_ml_dtypes(monkeypatch):
  monkeypatch.setitem(sys.modules, 'ml_dtypes', None)
  message = pb.Tensor(dtype=pb.DATA_TYPE_BF16, shape=[1], data=b'\0\0')
  with pytest.raises(ImportError, match=r'pip install "attnd\[bfloat16\]"'):
    tensors.from_message(message, ROW)


class Subclass(np.ndarray):
  """An array that another library calls its own."""


def read_only(array):
  copy = array.copy()
  copy.flags.writeable = False
  return copy


@pytest.mark.parametrize('unusual', [
    np.asfortranarray, read_only, np.matrix,
    lambda a: a.astype('>f4'), lambda a: a.view(Subclass),
    lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    lambda a: np.ascontiguousarray(a[::-1])[::-1], list, memoryview,
], ids=['fortran', 'read-only', 'matrix', 'big-endian', 'subclass', 'strided',
        'reversed', 'list of arrays', 'buffer'])
def test_unusual_arrays_give_the_same_bits(server, unusual):
  query, key, value = np.random.default_rng(1).standard_normal(
      (3, 5, 8)).astype(np.float32)
  with attnd.Client(server.tcp) as client:
    expected = client.attention(query, key, value, bias=query[:, :5])
    got = client.attention(*map(unusual, (query, key, value)),
                           bias=unusual(query[:, :5]))
  np.testing.assert_array_equal(got.output, expected.output)


def test_arrays_without_axes(server):
  with attnd.Client(server.tcp) as client:
    with pytest.raises(attnd.InvalidArgument) as caught:
      client.self_attention(np.float32(1))
    assert caught.value.field == 'sequence.shape'
    # Masks are broadcast by NumPy's rules.
    np.testing.assert_array_equal(
        client.self_attention(ROW, mask=np.array(False)).output, 0 * ROW)


def test_torch_types_have_torch_advice():
  torch = pytest.importorskip('torch')
  for name, value, text in (
      ('query', torch.ones(1, 4, dtype=torch.float64),
       r'query: .* got float64; .*\.to\(torch\.float32\)'),
      ('query', torch.ones(1, 4, dtype=torch.int16),
       r'got int16; use \.view\(torch\.bfloat16\)'),
      ('query', torch.ones(1, 4, dtype=torch.complex64), r'by \.real'),
      ('query', torch.ones(1, 4).to_sparse(), r'query: .* use \.to_dense\(\)'),
      ('query', torch.ones(1, 4).to_mkldnn(), r'query: .* use \.to_dense\(\)'),
      ('query', torch.ones(1, 4, device='meta'), 'query: .* on meta'),
      ('query', torch.nested.nested_tensor([torch.ones(1, 4)]),
       'query: .* pad it and use key_lengths'),
      ('query', torch.nested.nested_tensor([torch.ones(1, 4)],
                                           layout=torch.jagged),
       'query: .* pad it and use key_lengths'),
      ('mask', torch.ones(1, 1, dtype=torch.int64),
       r'options.mask: expected bool, got int64; use \.bool\(\)'),
      ('mask', torch.zeros(1, 1), r'use bias= .* or \.bool\(\)'),
      ('key_lengths', torch.tensor([1.0]), r'key_lengths\[0\]: .* whole number'),
  ):
    with pytest.raises(TypeError, match=text):
      ask(**{name: value})
  with pytest.raises(ValueError, match='output_dtype: expected one of float32'):
    ask(output_dtype=torch.float64)


def test_torch_values_that_are_taken():
  torch = pytest.importorskip('torch')
  request = ask(key_lengths=torch.tensor([1]), scale=torch.tensor(0.5),
                alibi_slopes=torch.tensor([0.5], dtype=torch.bfloat16),
                # A view whose sign is not in memory.
                query=torch.full((1, 4), -1j).conj().imag)
  assert request.options.key_lengths == [1]
  assert request.options.scale == 0.5
  assert request.options.alibi_slopes == [0.5]
  assert request.query.data == ROW.tobytes()


def test_torch_gradients_are_not_lost_in_silence():
  torch = pytest.importorskip('torch')
  tensor = torch.ones(1, 4, requires_grad=True)
  for arguments in ({'query': tensor}, {'value': tensor * 2}, {'bias': tensor},
                    {'query': [tensor]}, {'scale': tensor.mean()},
                    {'sink_logits': tensor[0]},
                    {'key': torch.nn.Parameter(torch.ones(1, 4))}):
    (name,) = arguments
    with pytest.raises(ValueError, match=rf'{name}: .* needs no gradient, .*got '
                       r'one that does; use \.detach\(\) .*attention_backward'):
      ask(**arguments)
    for off in (torch.no_grad, torch.inference_mode):
      with off():
        if name != 'query' or arguments[name] is tensor:
          ask(**arguments)
  ask(query=tensor.detach())
  with torch.autograd.forward_ad.dual_level():
    dual = torch.autograd.forward_ad.make_dual(torch.ones(1, 4),
                                               torch.ones(1, 4))
    with pytest.raises(ValueError, match='needs no gradient'):
      ask(query=dual)


def test_torch_there_and_back_without_gradients(server):
  torch = pytest.importorskip('torch')
  tensor = torch.ones(2, 4, requires_grad=True)
  with attnd.Client(server.tcp) as client:
    with torch.no_grad():
      output = client.self_attention(tensor).output
  assert torch.equal(output, torch.ones(2, 4)) and not output.requires_grad
