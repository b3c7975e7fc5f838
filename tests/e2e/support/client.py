"""A client for tests, which calls attnd as a Python program would: it converts
NumPy arrays to messages and back."""

import numpy as np
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from support import reference


def bf16(array):
  """Rounds to bfloat16. NumPy has no such type, so uint16 holds the bits."""
  bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
  return ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def widened(array):
  """Returns the numbers of an array of float16, or of the bits of bfloat16, as
  float32."""
  if array.dtype == np.uint16:
    return (array.astype(np.uint32) << 16).view(np.float32)
  return array.astype(np.float32)


class Client:
  """Makes calls with arrays over one channel. The arrays are float32, float16,
  bool, or uint16 for the bits of bfloat16. Other types are converted to
  float32."""

  def __init__(self, stubs, channel):
    self.pb, pb_grpc = stubs
    self.channel = channel
    self.stub = pb_grpc.AttentionServiceStub(channel)
    self.types = {np.dtype(np.float32): self.pb.DATA_TYPE_F32,
                  np.dtype(np.float16): self.pb.DATA_TYPE_F16,
                  np.dtype(np.uint16): self.pb.DATA_TYPE_BF16,
                  np.dtype(bool): self.pb.DATA_TYPE_BOOL}

  def tensor(self, array, values=False):
    array = np.ascontiguousarray(array)
    if array.dtype not in self.types:
      array = array.astype(np.float32)
    message = self.pb.Tensor(
        dtype=self.types[array.dtype], shape=array.shape)
    if values and array.dtype == np.float32:
      message.values.values.extend(array.ravel().tolist())
    else:
      message.data = array.tobytes()
    return message

  def raw(self, tensor):
    """Returns the array in the type of the message."""
    if tensor.WhichOneof('payload') == 'values':
      assert tensor.dtype == self.pb.DATA_TYPE_F32
      flat = np.array(tensor.values.values, np.float32)
    else:
      dtype = {number: name for name, number in self.types.items()}
      flat = np.frombuffer(tensor.data, dtype[tensor.dtype])
    return flat.reshape(tuple(tensor.shape))

  def array(self, tensor):
    """Returns the numbers of a tensor as float32."""
    return widened(self.raw(tensor))

  def options(self, causal=reference.NONE, layout=None, bias=None, mask=None,
              values=False, **fields):
    fields['causal'] = {
        reference.NONE: self.pb.CAUSAL_UNSPECIFIED,
        reference.TOP_LEFT: self.pb.CAUSAL_TOP_LEFT,
        reference.BOTTOM_RIGHT: self.pb.CAUSAL_BOTTOM_RIGHT,
    }[causal]
    fields['layout'] = {
        None: self.pb.LAYOUT_UNSPECIFIED,
        reference.BHSD: self.pb.LAYOUT_BHSD,
        reference.BSHD: self.pb.LAYOUT_BSHD,
    }[layout]
    if bias is not None:
      fields['bias'] = self.tensor(bias, values)
    if mask is not None:
      fields['mask'] = self.tensor(mask)
    return self.pb.AttentionOptions(**fields)

  def request(self, query, key, value, values=False, **options):
    return self.pb.AttentionRequest(
        query=self.tensor(query, values), key=self.tensor(key, values),
        value=self.tensor(value, values),
        options=self.options(values=values, **options))

  def attention(self, query, key, value, *, timeout=300, **how):
    """Returns the message of the response."""
    return self.stub.Attention(
        self.request(query, key, value, **how), timeout=timeout)

  def messages(self, request, chunk_bytes=1 << 20):
    """Yields a request as the messages of a stream."""
    header = self.pb.AttentionRequest()
    header.CopyFrom(request)
    tensors = {self.pb.TENSOR_ROLE_QUERY: header.query,
               self.pb.TENSOR_ROLE_KEY: header.key,
               self.pb.TENSOR_ROLE_VALUE: header.value}
    for name, role in (('bias', self.pb.TENSOR_ROLE_BIAS),
                       ('mask', self.pb.TENSOR_ROLE_MASK)):
      if header.options.HasField(name):
        tensors[role] = getattr(header.options, name)
    data = {}
    for role, tensor in tensors.items():
      data[role] = memoryview(tensor.data)
      tensor.ClearField('data')
    yield self.pb.AttentionStreamRequest(header=header)
    for role, whole in data.items():
      for at in range(0, len(whole), chunk_bytes):
        yield self.pb.AttentionStreamRequest(chunk=self.pb.TensorChunk(
            role=role, offset_bytes=at,
            data=bytes(whole[at:at + chunk_bytes])))

  def answer(self, responses):
    """Returns the answer of a stream in the form of the response of a unary
    call."""
    responses = iter(responses)
    answer = self.pb.AttentionResponse()
    answer.CopyFrom(next(responses).header)
    pieces = {self.pb.TENSOR_ROLE_OUTPUT: [], self.pb.TENSOR_ROLE_LSE: []}
    for response in responses:
      if response.HasField('stats'):
        answer.stats.CopyFrom(response.stats)
        continue
      chunk = response.chunk
      got = pieces[chunk.role]
      assert chunk.offset_bytes == sum(map(len, got))
      got.append(chunk.data)
    answer.output.data = b''.join(pieces[self.pb.TENSOR_ROLE_OUTPUT])
    if answer.HasField('lse'):
      answer.lse.data = b''.join(pieces[self.pb.TENSOR_ROLE_LSE])
    assert answer.HasField('stats')
    return answer

  def stream(self, request, *, timeout=300, **how):
    """Returns the answer of Attention, computed by AttentionStream."""
    return self.answer(self.stub.AttentionStream(
        self.messages(request, **how), timeout=timeout))

  def self_request(self, sequence, **options):
    return self.pb.SelfAttentionRequest(
        sequence=self.tensor(sequence), options=self.options(**options))

  def backward_request(self, query, key, value, grad_output, *, answer=None,
                       values=False, **options):
    """Returns the backward request for an answer of Attention. Without one, it
    calls Attention first."""
    if answer is None:
      answer = self.attention(query, key, value, values=values,
                              return_lse=True, **options)
    return self.pb.AttentionBackwardRequest(
        query=self.tensor(query, values), key=self.tensor(key, values),
        value=self.tensor(value, values), output=answer.output,
        lse=answer.lse, grad_output=self.tensor(grad_output, values),
        options=self.options(values=values, **options))

  def backward(self, *tensors, timeout=300, **how):
    """Returns the message of the response."""
    return self.stub.AttentionBackward(
        self.backward_request(*tensors, **how), timeout=timeout)


class Refusal:
  """The details of an error."""

  def __init__(self, error):
    self.code = error.code()
    self.message = error.details()
    self.reason = self.domain = self.field = self.description = None
    self.retry_info = None
    trailers = dict(error.trailing_metadata() or ())
    self.retry_pushback = trailers.get('grpc-retry-pushback-ms')
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
      if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
        info = error_details_pb2.ErrorInfo.FromString(detail.value)
        self.reason, self.domain = info.reason, info.domain
      elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
        bad = error_details_pb2.BadRequest.FromString(detail.value)
        (violation,) = bad.field_violations
        self.field = violation.field
        self.description = violation.description
      elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
        self.retry_info = error_details_pb2.RetryInfo.FromString(detail.value)

  def __repr__(self):
    return (f'{self.code} {self.reason} field={self.field!r} '
            f'{self.message!r}')
