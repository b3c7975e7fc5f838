"""Attention whose tensors are too large for one message: the messages of
AttentionStream, made while they are sent. Without any I/O, as calls.py."""

from attnd.v1 import attention_pb2 as pb

CHUNK_BYTES = 1 << 20  # the most that the contract allows


def requests(request):
  """The header, then the chunks, of an AttentionRequest of `data` tensors."""
  tensors = {pb.TENSOR_ROLE_QUERY: request.query,
             pb.TENSOR_ROLE_KEY: request.key,
             pb.TENSOR_ROLE_VALUE: request.value}
  if request.options.HasField('bias'):
    tensors[pb.TENSOR_ROLE_BIAS] = request.options.bias
  if request.options.HasField('mask'):
    tensors[pb.TENSOR_ROLE_MASK] = request.options.mask
  payloads = {role: memoryview(t.data) for role, t in tensors.items()}
  for tensor in tensors.values():
    tensor.ClearField('data')
  yield pb.AttentionStreamRequest(header=request)
  for role, payload in payloads.items():
    for offset in range(0, len(payload), CHUNK_BYTES):
      yield pb.AttentionStreamRequest(chunk=pb.TensorChunk(
          role=role, offset_bytes=offset,
          data=bytes(payload[offset:offset + CHUNK_BYTES])))


class Response:
  """Puts together what the server answers; `add` each message in turn."""

  def __init__(self):
    self._answer = pb.AttentionResponse()
    self._pieces = {pb.TENSOR_ROLE_OUTPUT: [], pb.TENSOR_ROLE_LSE: []}

  def add(self, message):
    kind = message.WhichOneof('message')
    if kind == 'header':
      self._answer.CopyFrom(message.header)
    elif kind == 'chunk':
      self._pieces[message.chunk.role].append(message.chunk.data)
    elif kind == 'stats':
      self._answer.stats.CopyFrom(message.stats)

  def joined(self):
    """The AttentionResponse that one message would have been."""
    self._answer.output.data = b''.join(self._pieces[pb.TENSOR_ROLE_OUTPUT])
    if self._answer.HasField('lse'):
      self._answer.lse.data = b''.join(self._pieces[pb.TENSOR_ROLE_LSE])
    return self._answer
