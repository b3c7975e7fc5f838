"""Arguments to messages and back, without a server."""

import pickle
import subprocess
import sys

import attnd
from attnd import calls, tensors
from attnd.v1 import attention_pb2 as pb
import ml_dtypes
import numpy as np
import pytest

ROW = np.ones((1, 4), np.float32)


class Recorder(calls.Calls):
  """A client that keeps the request instead of sending it."""

  def _call(self, method, request, timeout, decode=None):
    return request.message()


def options(**values):
  return Recorder().self_attention(ROW, **values).options


# A value for every field of AttentionOptions, and what it becomes. If the
# contract gets a new field, test_every_option fails until the field is added
# here.
OPTIONS = {
    'scale': (0.5, 0.5),
    'temperature': (2, 2.0),
    'block_size': (np.int64(64), 64),
    'layout': ('bshd', pb.LAYOUT_BSHD),
    'causal': ('bottom-right', pb.CAUSAL_BOTTOM_RIGHT),
    'query_offsets': (np.array([3, 4]), [3, 4]),
    'window_left': (0, 0),
    'window_right': (7, 7),
    'logits_soft_cap': (30, 30.0),
    'alibi_slopes': (np.array([0.5, 0.25], np.float32), [0.5, 0.25]),
    'sink_logits': ([-np.inf], [-np.inf]),
    'bias': (ROW, tensors.to_message('', ROW)),
    'mask': (ROW > 0, pb.Tensor(dtype=pb.DATA_TYPE_BOOL, shape=[1, 4],
                                data=b'\1\1\1\1')),
    'query_lengths': ((1, 2), [1, 2]),
    'key_lengths': ((1, 2), [1, 2]),
    'cu_seqlens_q': ([0, 5], [0, 5]),
    'cu_seqlens_k': ([0, 5], [0, 5]),
    'return_lse': (True, True),
    'output_dtype': ('bf16', pb.DATA_TYPE_BF16),
    'precision': ('f32', pb.PRECISION_F32),
    'output_region': (pb.SharedMemory(handle=b'x'),
                      pb.SharedMemory(handle=b'x')),
    'lse_region': ({'offset_bytes': 64}, pb.SharedMemory(offset_bytes=64)),
}


@pytest.mark.parametrize('name',
                         pb.AttentionOptions.DESCRIPTOR.fields_by_name.keys())
def test_every_option(name):
  value, expected = OPTIONS[name]
  message = options(**{name: value})
  assert getattr(message, name) == expected
  assert [field.name for field, _ in message.ListFields()] == [name]


def test_none_leaves_an_option_unset():
  assert not options(window_left=None, causal=None).ListFields()


@pytest.mark.parametrize('value', ['float16', np.float16, np.dtype('float16'),
                                   'f16', 'half', 'DATA_TYPE_F16',
                                   pb.DATA_TYPE_F16])
def test_ways_to_name_a_type(value):
  assert options(output_dtype=value).output_dtype == pb.DATA_TYPE_F16


@pytest.mark.parametrize('value', ['bfloat16', 'bf16', ml_dtypes.bfloat16,
                                   np.dtype(ml_dtypes.bfloat16)])
def test_ways_to_name_bfloat16(value):
  assert options(output_dtype=value).output_dtype == pb.DATA_TYPE_BF16


def test_float64_is_not_narrowed_in_silence():
  with pytest.raises(TypeError, match='query: expected float32, .* float64'):
    Recorder().attention(np.ones((1, 4)), ROW, ROW)


@pytest.mark.parametrize('field, dtype, wire, size', [
    ('query', np.float32, pb.DATA_TYPE_F32, 4),
    ('query', np.float16, pb.DATA_TYPE_F16, 2),
    ('query', ml_dtypes.bfloat16, pb.DATA_TYPE_BF16, 2),
    ('options.mask', np.bool_, pb.DATA_TYPE_BOOL, 1),
])
def test_types_there_and_back(field, dtype, wire, size):
  array = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
  message = tensors.to_message(field, array.T)  # not contiguous
  assert (message.dtype, list(message.shape)) == (wire, [3, 2])
  assert len(message.data) == 6 * size
  back = tensors.from_message(message, array)
  assert back.dtype == array.dtype
  np.testing.assert_array_equal(back, array.T)


def test_big_endian_arrays_travel_little_endian():
  message = tensors.to_message('x', np.array([[1.5]], '>f4'))
  assert message.data == np.array([[1.5]], '<f4').tobytes()


def test_an_empty_tensor():
  back = tensors.from_message(
      tensors.to_message('x', np.empty((2, 0, 3), np.float32)), ROW)
  assert back.shape == (2, 0, 3)


def test_torch_there_and_back():
  torch = pytest.importorskip('torch')
  for dtype in (torch.float32, torch.float16, torch.bfloat16):
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3).to(dtype).T
    message = tensors.to_message('x', tensor)
    back = tensors.from_message(message, tensor)
    assert back.dtype == dtype and torch.equal(back, tensor)
    assert options(output_dtype=dtype).output_dtype == message.dtype


def test_public_names_exist():
  assert all(hasattr(attnd, name) for name in attnd.__all__)


def test_messages_pickle():
  stats = pb.ExecutionStats(isa='avx2')
  stats.compute_time.FromMilliseconds(5)
  result = attnd.AttentionResult(ROW, None, stats)
  assert pickle.loads(pickle.dumps(result)).stats == stats


@pytest.mark.parametrize('order', [[0, 1], [1, 0]])
@pytest.mark.parametrize('version', ['the same', 'another'])
def test_beside_stubs_of_the_program(order, version):
  """Code of protoc puts its own descriptors of the contract, whatever version
  of it the program has, into the pool of the process."""
  parts = ["import attnd.v1.attention_pb2 as pb", f"""
from google.protobuf import descriptor_pb2, descriptor_pool
import pkgutil
for file in descriptor_pb2.FileDescriptorSet.FromString(
    pkgutil.get_data('attnd', 'v1/attention.binpb')).file:
  if {version == 'another'} and file.package == 'attnd.v1':
    del file.message_type[-1].field[:]
  descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
"""]
  program = '\n'.join([parts[i] for i in order] + ['print(pb.Tensor(shape=[7]))'])
  done = subprocess.run([sys.executable, '-c', program], capture_output=True,
                        text=True, check=False)
  assert (done.stdout.strip(), done.stderr) == ('shape: 7', '')
