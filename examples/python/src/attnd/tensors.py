"""Converts arrays to Tensor messages and back. This module supports NumPy, shared
regions, and PyTorch if the caller has imported it. It does not depend on options or
calls."""

import sys

import numpy as np

from attnd import shared_memory
from attnd.v1 import attention_pb2 as pb

# Maps NumPy's name of a type to the DataType of messages. ml_dtypes adds "bfloat16".
DTYPES = {
    'float32': pb.DATA_TYPE_F32,
    'float16': pb.DATA_TYPE_F16,
    'bfloat16': pb.DATA_TYPE_BF16,
    'bool': pb.DATA_TYPE_BOOL,
}
_ELEMENT_BYTES = {
    pb.DATA_TYPE_F16: 2,
    pb.DATA_TYPE_BF16: 2,
    pb.DATA_TYPE_BOOL: 1,
}
_NAMES = {number: name for name, number in DTYPES.items()}
FLOATS = ('float32', 'float16', 'bfloat16')


def to_message(field, value):
  """Returns a Tensor with the elements of `value`, which is an array, a torch tensor on
  a CPU or GPU, or a Tensor.

  A field with the name mask takes bools, and every other field takes floats. Refuses
  types whose conversion would change numbers, such as float64.
  """
  message, payload = describe(field, value)
  if payload is not None:
    message.data = payload.tobytes()
  return message


def describe(field, value):
  """Does the same as to_message, but returns (Tensor without elements, elements). The
  elements are an array of bytes. It is not a copy if `value` already has the bytes
  that are sent. It is None if the Tensor has the elements, or their place in shared
  memory."""
  if isinstance(value, pb.Tensor):
    if value.WhichOneof('payload') != 'data':
      return value, None
    return (pb.Tensor(dtype=value.dtype, shape=value.shape),
            np.frombuffer(value.data, np.uint8))
  if _is_torch(value):
    name, array = _from_torch(field, value)
  else:
    name, array = _from_any(field, value)
  place = shared_memory.place_of(field, array)
  if place is not None:
    return (pb.Tensor(dtype=DTYPES[name], shape=array.shape,
                      shared_memory=place), None)
  if array.dtype.byteorder == '>':  # messages are little-endian
    array = array.astype(array.dtype.newbyteorder('<'))
  return (pb.Tensor(dtype=DTYPES[name], shape=array.shape),
          np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def element_bytes(dtype):
  """Returns how many bytes an element of a DataType has."""
  return _ELEMENT_BYTES.get(dtype, 4)


def from_message(message, like, data=None):
  """Returns the array of a Tensor, or a torch tensor if `like` is one. `data` has the
  elements if they are not in the message.

  A NumPy array is a read-only view of the message, or an array in the shared region
  that the call named.
  """
  kind = message.WhichOneof('payload')
  if kind == 'values':
    array = np.array(message.values.values, np.float32)
    return array.reshape(message.shape)
  name = _NAMES[message.dtype]
  if kind == 'shared_memory':
    return shared_memory.array_at(message.shared_memory, message.shape,
                                  _numpy_dtype(name))
  if data is None:
    data = message.data
  if _is_torch(like):
    torch = sys.modules['torch']
    # PyTorch requires writable memory, and at least one element.
    flat = (torch.frombuffer(bytearray(data), dtype=getattr(torch, name))
            if data else torch.empty(0, dtype=getattr(torch, name)))
    return flat.reshape(tuple(message.shape)).to(like.device)
  return np.frombuffer(data, _numpy_dtype(name)).reshape(message.shape)


def refuse_losses(field, value):
  """Raises an error if NumPy or PyTorch would drop a part of `value` without notice:
  the mask of a masked array, or the gradient of a tensor."""
  if isinstance(value, np.ma.MaskedArray):
    raise TypeError(
        f'{field}: expected an array without a mask of its own, got '
        f'{type(value).__name__}; use .filled() to choose the values of its masked '
        'elements, and mask= to hide keys')
  if _is_torch(value):
    torch = sys.modules['torch']
    # inference_mode() turns gradients off as no_grad() does.
    if torch.is_grad_enabled() and (
        value.requires_grad or
        torch.autograd.forward_ad.unpack_dual(value).tangent is not None):
      raise ValueError(
          f'{field}: expected a tensor that needs no gradient, because the call '
          'returns none, got one that does; use .detach() or torch.no_grad(), and '
          'attention_backward() for the gradients')
  elif isinstance(value, (list, tuple)):
    for item in value:
      refuse_losses(field, item)


def name_of(number):
  """Returns NumPy's name of a DataType."""
  return _NAMES.get(number, f'type {number}')


def number_of(dtype):
  """Returns the DataType of a dtype of NumPy, ml_dtypes or PyTorch, or of NumPy's name
  of it. Returns None if there is no such DataType."""
  torch = sys.modules.get('torch')
  if torch is not None and isinstance(dtype, torch.dtype):
    return DTYPES.get(str(dtype).removeprefix('torch.'))
  if isinstance(dtype, str) and dtype in DTYPES:
    return DTYPES[dtype]  # NumPy knows the name bfloat16 only after ml_dtypes
  try:
    return DTYPES.get(np.dtype(dtype).name)
  except TypeError:
    return None


def to_numpy(value):
  """Returns the name of the type of an array or tensor, and a NumPy array of it. For
  PyTorch's bfloat16, the array is float32."""
  if not _is_torch(value):
    array = np.asarray(value)
    return array.dtype.name, array
  name = str(value.dtype).removeprefix('torch.')
  tensor = value.detach().cpu()
  return name, (tensor.float() if name == 'bfloat16' else tensor).numpy()


def like(array, original):
  """Returns `array` as a torch tensor with the type and device of `original`, if that
  is a torch tensor. Returns `array` otherwise."""
  if not _is_torch(original):
    return array
  return sys.modules['torch'].from_numpy(array).to(original.device,
                                                   original.dtype)


def _is_torch(value):
  torch = sys.modules.get('torch')  # imported by anyone who has a tensor
  return torch is not None and isinstance(value, torch.Tensor)


def _numpy_dtype(name):
  if name == 'bfloat16':
    try:
      import ml_dtypes  # needed only for bfloat16
    except ImportError as error:
      raise ImportError('NumPy has no bfloat16 without ml_dtypes; install it '
                        'with pip install "attnd[bfloat16]"') from error
    return np.dtype(ml_dtypes.bfloat16)
  return np.dtype(name).newbyteorder('<')


def _from_torch(field, tensor):
  torch = sys.modules['torch']
  name = str(tensor.dtype).removeprefix('torch.')
  if name not in _wanted(field):
    kind = ('c' if tensor.is_complex() else 'f' if tensor.is_floating_point() else
            'b' if name == 'bool' else 'q' if name.startswith('q') else 'i')
    raise _wrong_type(field, name, _advice(
        field, name, kind, '.bool()', '.to(torch.float32)',
        '.view(torch.bfloat16)'))
  try:
    # The neg bit means that PyTorch has not yet negated the numbers in memory.
    tensor = tensor.detach().cpu().resolve_neg().contiguous()
    if name == 'bfloat16':  # NumPy lacks bfloat16; only the bytes matter
      tensor = tensor.view(torch.int16)
    return name, tensor.numpy()
  except (RuntimeError, TypeError) as error:
    advice = ('pad it and use key_lengths, or pack it and use cu_seqlens_q and '
              'cu_seqlens_k' if tensor.is_nested else 'use .to_dense()'
              if tensor.layout is not torch.strided else 'pass a plain tensor')
    raise TypeError(f'{field}: expected a dense tensor in memory, got a '
                    f'{type(tensor).__name__} of layout {tensor.layout} on '
                    f'{tensor.device} ({error}); {advice}') from error


def _from_any(field, value):
  """Returns NumPy's name of the type, and the array."""
  try:
    array = np.asarray(value)
  except (RuntimeError, TypeError, ValueError) as error:
    raise TypeError(f'{field}: expected an array, got {type(value).__name__}, '
                    f'which NumPy refuses: {error}') from error
  name = array.dtype.name
  if name in _wanted(field):
    return name, array
  if isinstance(value, (np.ndarray, np.generic)):
    got, to_bool, to_float = name, '.astype(bool)', '.astype("float32")'
  else:
    got = f'{type(value).__name__} (of {name})'
    to_bool, to_float = 'numpy.asarray(x, bool)', 'numpy.asarray(x, "float32")'
  if hasattr(value, 'toarray'):  # a sparse array of scipy
    advice = 'use .toarray()'
  else:
    kind = array.dtype.kind
    if kind == 'V' and not name.startswith('void'):
      kind = 'f'  # of ml_dtypes
    advice = _advice(field, name, kind, to_bool, to_float,
                     '.view(ml_dtypes.bfloat16)')
  raise _wrong_type(field, got, advice)


def _wanted(field):
  return ('bool',) if field.rpartition('.')[2] == 'mask' else FLOATS


def _wrong_type(field, got, advice):
  *most, last = _wanted(field)
  expected = f'{", ".join(most)} or {last}' if most else last
  return TypeError(f'{field}: expected {expected}, got {got}; {advice}')


def _advice(field, name, kind, to_bool, to_float, to_bfloat16):
  """Returns advice for elements of type `name`. `kind` is NumPy's letter for the kind
  of the type."""
  is_mask = _wanted(field) == ('bool',)
  if is_mask and kind == 'f':
    return ('use bias= for numbers that are added to the scores, such as 0 and '
            f'-inf, or {to_bool} if nonzero means visible')
  if is_mask and kind in 'iu':
    return f'use {to_bool} if nonzero means visible'
  if is_mask:
    return 'pass an array of bool that is True if the key is visible'
  if kind == 'b' and field.rpartition('.')[2] == 'bias':
    return 'use mask= for an array that is True if a key is visible'
  if name in ('int16', 'uint16'):
    return f'use {to_bfloat16} for the bits of bfloat16, and {to_float} otherwise'
  if name == 'void16':
    return (f'use {to_bfloat16} if bfloat16 was saved, because numpy.load does '
            'not know this type')
  if kind in 'biuf':
    return f'convert it explicitly, for example by {to_float}'
  if kind == 'c':
    return ('use real numbers, for example by .real, because attention has no '
            'complex numbers')
  if kind == 'q':
    return 'use .dequantize()'
  return 'pass an array of numbers'
