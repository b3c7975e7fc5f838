"""Packs a request into one message, or into the messages of AttentionStream if one
message would be too large. This module does no I/O."""

import dataclasses
import itertools
import math

import grpc

from attnd import errors
from attnd.tensors import element_bytes
from attnd.v1 import attention_pb2 as pb

MAX_MESSAGE_BYTES = 2**31 - 1  # protobuf's limit, for every server
_MAX_CHUNK_BYTES = 1 << 20  # the contract's limit
_FRAME_BYTES = 32  # the most that protobuf adds to a chunk or a tensor's elements
_ENVELOPE_BYTES = 4096  # the most that an answer holds besides its tensors
_SMALLEST_LIMIT_BYTES = 64 << 10  # the smallest --max-message-bytes of a server

# The fields of each request that hold the query, the key and the value.
_ROLES = {
    pb.AttentionRequest: ('query', 'key', 'value'),
    pb.SelfAttentionRequest: ('sequence', 'sequence', 'sequence'),
    pb.CrossAttentionRequest: ('queries', 'kv_sequence', 'kv_sequence'),
}


@dataclasses.dataclass(frozen=True)
class Limits:
  """The largest request and answer of a server, and whether it supports streams."""
  request_bytes: int = MAX_MESSAGE_BYTES
  response_bytes: int = MAX_MESSAGE_BYTES
  streams: bool = False

  @classmethod
  def of(cls, info):
    """Returns the limits in a GetServerInfoResponse."""
    return cls(min(info.max_receive_message_bytes, MAX_MESSAGE_BYTES),
               min(info.max_send_message_bytes, MAX_MESSAGE_BYTES),
               'stream' in info.features)


def may_have_other_limits(error):
  """Returns whether the call can have failed because the server has been replaced by
  one with other limits. If gRPC itself refuses a message as too large, the error has
  no reason."""
  return (isinstance(error, (errors.ResourceExhausted, errors.Unimplemented)) and
          error.reason in ('', 'MESSAGE_TOO_LARGE'))


class Request:
  """A message without the elements of its tensors. The elements stay in the arrays of
  the caller until they are sent.

  tensors: a dict from a tensor's path in the message to (Tensor, elements).
    The elements are an array of bytes. They are None if the Tensor has the elements
    or their place in shared memory.
  """

  def __init__(self, message, tensors):
    self._message = message
    self._tensors = tensors
    self._size_bytes = message.ByteSize() + sum(
        payload.size + _FRAME_BYTES for _, payload in tensors.values()
        if payload is not None)

  def message(self):
    """Returns the request as one message, with all elements."""
    for tensor, payload in self._tensors.values():
      if payload is not None and not tensor.data:
        tensor.data = payload.tobytes()
    return self._message

  def is_small(self):
    """Returns whether the request and its answer each fit into one message of every
    server, whatever its limits are."""
    return max(self._size_bytes,
               self._answer_bytes()) <= _SMALLEST_LIMIT_BYTES

  def must_stream(self, limits):
    """Returns whether the request has to use AttentionStream. Raises
    ResourceExhausted if it is too large for one message and cannot be streamed."""
    fits = self._size_bytes <= limits.request_bytes
    if fits and self._answer_bytes() <= limits.response_bytes:
      return False
    whole = all(payload is not None for _, payload in self._tensors.values())
    if type(self._message) in _ROLES and whole and limits.streams:
      return True
    if fits:  # the answer may not fit; the server decides, and refuses the call
      return False
    if type(self._message) not in _ROLES:
      remedy = 'divide the batch entries or heads among several calls'
    elif not limits.streams:
      remedy = 'this server has no attention_stream'
    else:
      remedy = ('pass every tensor as an array outside of SharedRegions, so that '
                'the client streams it')
    if limits.request_bytes < MAX_MESSAGE_BYTES:
      remedy = f"raise the server's --max-message-bytes, or {remedy}"
    raise errors.ResourceExhausted(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f'{type(self._message).__name__}: expected at most '
        f'{limits.request_bytes} bytes in one message, got {self._size_bytes}: '
        f'{remedy}', 'MESSAGE_TOO_LARGE')

  def stream(self, limits):
    """Returns the messages of AttentionStream. All but the first one are created
    when they are sent."""
    for tensor, payload in self._tensors.values():
      if payload is not None:
        tensor.ClearField('data')
    names = _ROLES[type(self._message)]
    header = pb.AttentionRequest(options=self._message.options)
    for field, name in zip(('query', 'key', 'value'), names):
      getattr(header, field).CopyFrom(self._tensors[name][0])
    chunk_bytes = min(_MAX_CHUNK_BYTES, limits.request_bytes - _FRAME_BYTES)
    return itertools.chain([pb.AttentionStreamRequest(header=header)],
                           self._chunks(names, chunk_bytes))

  def _chunks(self, names, chunk_bytes):
    roles = {pb.TENSOR_ROLE_QUERY: names[0],
             pb.TENSOR_ROLE_KEY: names[1],
             pb.TENSOR_ROLE_VALUE: names[2],
             pb.TENSOR_ROLE_BIAS: 'options.bias',
             pb.TENSOR_ROLE_MASK: 'options.mask'}
    for role, name in roles.items():
      _, payload = self._tensors.get(name, (None, None))
      for offset in range(0, 0 if payload is None else payload.size,
                          chunk_bytes):
        yield pb.AttentionStreamRequest(chunk=pb.TensorChunk(
            role=role, offset_bytes=offset,
            data=payload[offset:offset + chunk_bytes].tobytes()))

  def _answer_bytes(self):
    """Returns the largest size of the answer, or 0 for a call without a stream."""
    if type(self._message) not in _ROLES:
      return 0
    query, _, value = (self._tensors[name][0]
                       for name in _ROLES[type(self._message)])
    options = self._message.options
    rows = math.prod(query.shape[:-1])
    row_bytes = 4 if options.return_lse else 0
    row_bytes += math.prod(value.shape[-1:]) * element_bytes(
        options.output_dtype or query.dtype)
    return _ENVELOPE_BYTES + rows * row_bytes


class Response:
  """Combines the messages of a streamed answer. Call `add` with each message."""

  def __init__(self):
    self._reply = pb.AttentionResponse()
    self._pieces = {pb.TENSOR_ROLE_OUTPUT: [], pb.TENSOR_ROLE_LSE: []}

  def add(self, message):
    kind = message.WhichOneof('message')
    if kind == 'header':
      self._reply.CopyFrom(message.header)
    elif kind == 'chunk':
      self._pieces[message.chunk.role].append(message.chunk.data)
    elif kind == 'stats':
      self._reply.stats.CopyFrom(message.stats)

  def joined(self):
    """Returns the AttentionResponse without its elements, and the elements of output
    and lse as bytes."""
    return self._reply, *(b''.join(pieces) for pieces in self._pieces.values())
