"""attnd as a Python program calls it: NumPy arrays to messages and back."""

import numpy as np
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from support import reference


class Client:
  """Calls with arrays over one channel."""

  def __init__(self, stubs, channel):
    self.pb, pb_grpc = stubs
    self.channel = channel
    self.stub = pb_grpc.AttentionServiceStub(channel)

  def tensor(self, array, values=False):
    array = np.ascontiguousarray(array, np.float32)
    message = self.pb.Tensor(dtype=self.pb.DATA_TYPE_F32, shape=array.shape)
    if values:
      message.values.values.extend(array.ravel().tolist())
    else:
      message.data = array.tobytes()
    return message

  def array(self, tensor):
    kind = tensor.WhichOneof('payload')
    assert tensor.dtype == self.pb.DATA_TYPE_F32
    flat = (np.array(tensor.values.values, np.float32) if kind == 'values' else
            np.frombuffer(tensor.data, np.float32))
    return flat.reshape(tuple(tensor.shape))

  def options(self, causal=reference.NONE, **fields):
    rule = {
        reference.NONE: self.pb.CAUSAL_UNSPECIFIED,
        reference.TOP_LEFT: self.pb.CAUSAL_TOP_LEFT,
        reference.BOTTOM_RIGHT: self.pb.CAUSAL_BOTTOM_RIGHT,
    }[causal]
    return self.pb.AttentionOptions(causal=rule, **fields)

  def request(self, query, key, value, values=False, **options):
    return self.pb.AttentionRequest(
        query=self.tensor(query, values), key=self.tensor(key, values),
        value=self.tensor(value, values), options=self.options(**options))

  def attention(self, query, key, value, *, timeout=300, **how):
    """Returns the response's message."""
    return self.stub.Attention(
        self.request(query, key, value, **how), timeout=timeout)

  def self_request(self, sequence, **options):
    return self.pb.SelfAttentionRequest(
        sequence=self.tensor(sequence), options=self.options(**options))


class Refusal:
  """The details of an error, unpacked."""

  def __init__(self, error):
    self.code = error.code()
    self.message = error.details()
    self.reason = self.domain = self.field = self.description = None
    self.retry_info = None
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
