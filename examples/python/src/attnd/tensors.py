"""Arrays to Tensor messages and back. Knows NumPy, PyTorch where the caller has
imported it, and shared regions; neither options nor calls."""

import sys

import numpy as np

from attnd import shared_memory
from attnd.v1 import attention_pb2 as pb

# NumPy's name of a type to the wire's. ml_dtypes gives NumPy "bfloat16".
DTYPES = {
    'float32': pb.DATA_TYPE_F32,
    'float16': pb.DATA_TYPE_F16,
    'bfloat16': pb.DATA_TYPE_BF16,
    'bool': pb.DATA_TYPE_BOOL,
}
_NAMES = {number: name for name, number in DTYPES.items()}


def to_message(field, value):
  """A Tensor of `value`: an array, a CPU or GPU torch tensor, or a Tensor.

  Nothing is converted that would change a number: float64 is refused.
  """
  if isinstance(value, pb.Tensor):
    return value
  if _is_torch(value):
    name, array = _from_torch(value)
  else:
    array = np.asarray(value)
    name = array.dtype.name
  if name not in DTYPES:
    raise TypeError(f'{field}: expected {", ".join(DTYPES)}, got {name}; '
                    'convert it on purpose, as by .astype("float32")')
  place = shared_memory.place_of(field, array)
  if place is not None:
    return pb.Tensor(dtype=DTYPES[name], shape=array.shape, shared_memory=place)
  if array.dtype.byteorder == '>':  # the wire is little-endian
    array = array.astype(array.dtype.newbyteorder('<'))
  return pb.Tensor(dtype=DTYPES[name], shape=array.shape, data=array.tobytes())


def from_message(message, like):
  """The array of a Tensor; a torch tensor where `like` is one.

  A NumPy array is a read-only view of the message, or lies in the shared region
  that was asked for.
  """
  kind = message.WhichOneof('payload')
  if kind == 'values':
    array = np.array(message.values.values, np.float32)
    return array.reshape(message.shape)
  name = _NAMES[message.dtype]
  if kind == 'shared_memory':
    return shared_memory.array_at(message.shared_memory, message.shape,
                                  _numpy_dtype(name))
  if _is_torch(like):
    torch = sys.modules['torch']
    # PyTorch wants memory that it may write to, and at least one element.
    flat = (torch.frombuffer(bytearray(message.data),
                             dtype=getattr(torch, name))
            if message.data else torch.empty(0, dtype=getattr(torch, name)))
    return flat.reshape(tuple(message.shape)).to(like.device)
  return np.frombuffer(message.data, _numpy_dtype(name)).reshape(message.shape)


def _numpy_dtype(name):
  if name == 'bfloat16':
    import ml_dtypes  # NumPy has no bfloat16; only who asks for it needs this
    return np.dtype(ml_dtypes.bfloat16)
  return np.dtype(name).newbyteorder('<')


def _is_torch(value):
  torch = sys.modules.get('torch')  # who has a tensor has imported it
  return torch is not None and isinstance(value, torch.Tensor)


def _from_torch(tensor):
  torch = sys.modules['torch']
  name = str(tensor.dtype).removeprefix('torch.')
  tensor = tensor.detach().cpu().contiguous()
  if name == 'bfloat16':  # which NumPy lacks; only the bytes matter here
    tensor = tensor.view(torch.int16)
  return name, tensor.numpy()
