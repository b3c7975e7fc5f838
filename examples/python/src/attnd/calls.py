"""Makes requests from arguments, and results from replies. This module does no I/O,
so Client and AsyncClient share it."""

import collections.abc
import dataclasses
import difflib
import math
import operator
import reprlib
import typing

from google.protobuf.descriptor import FieldDescriptor
import numpy as np

from attnd import exchange, shared_memory, tensors, transport
from attnd.retry import Attempts, RetryPolicy, Timeout, checked_timeout
from attnd.v1 import attention_pb2 as pb

_MAX_FLOAT32 = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class AttentionResult:
  """The result of an attention call. It has torch tensors if the query was one."""
  output: typing.Any  # the query's shape with v_head_dim as its last axis
  lse: typing.Any  # None unless return_lse
  stats: pb.ExecutionStats


@dataclasses.dataclass(frozen=True)
class Gradients:
  """The result of attention_backward."""
  query: typing.Any
  key: typing.Any
  value: typing.Any
  stats: pb.ExecutionStats


class Calls:
  """The calls of both clients. The calls of AsyncClient have to be awaited.

  Pass float32, float16 or bfloat16 arrays of NumPy or PyTorch, with the shape
  [batch, heads, seq, head_dim] or without the leading axes. The client reads them
  while the call runs, so do not change them before it has ended.

  `options` are the fields of AttentionOptions by name, for example scale,
  causal='top_left', window_left, mask, bias and return_lse=True. `timeout` is in
  seconds and covers all attempts; None or infinity means no deadline.

  Arrays of a SharedRegion are not sent. If the query is such an array, pass another
  one as output_region, and a third one as lse_region if return_lse is set.

  Tensors that are too large for one message of this server are sent as a stream.
  attention_backward has no stream, and raises ResourceExhausted in this case.
  """

  def __init__(self, timeout=60.0, retry=RetryPolicy()):
    self._timeout = checked_timeout(timeout)
    if not isinstance(retry, RetryPolicy):
      raise TypeError(f'retry: expected an attnd.RetryPolicy, got {_shown(retry)}; '
                      'RetryPolicy(max_attempts=1) turns retries off')
    self._retry = retry
    self._server = exchange.Server()

  def _run(self, steps):
    """Performs each step that a generator of exchange yields, and returns what
    the generator returns."""
    raise NotImplementedError

  def attention(self, query, key, value, *, timeout=Timeout.OF_CLIENT,
                **options):
    """Returns softmax(scores(query, key)) * value as an AttentionResult."""
    return self._call(
        'Attention',
        _request(pb.AttentionRequest, _checked(options, query, value),
                 query=query, key=key, value=value), timeout, _result(query))

  def self_attention(self, sequence, *, timeout=Timeout.OF_CLIENT, **options):
    """Returns attention() with query = key = value = sequence."""
    return self._call(
        'SelfAttention',
        _request(pb.SelfAttentionRequest, _checked(options, sequence, sequence),
                 sequence=sequence), timeout, _result(sequence))

  def cross_attention(self, queries, kv_sequence, *, timeout=Timeout.OF_CLIENT,
                      **options):
    """Returns attention() with key = value = kv_sequence."""
    return self._call(
        'CrossAttention',
        _request(pb.CrossAttentionRequest,
                 _checked(options, queries, kv_sequence), queries=queries,
                 kv_sequence=kv_sequence), timeout, _result(queries))

  def attention_stream(self, query, key, value, *, timeout=Timeout.OF_CLIENT,
                       **options):
    """Returns attention(), but always sends the tensors as a stream."""
    return self._call(
        'Attention', _request(pb.AttentionRequest, options, query=query,
                              key=key, value=value), timeout, _result(query),
        stream=True)

  def attention_backward(self, query, key, value, output, lse, grad_output, *,
                         timeout=Timeout.OF_CLIENT, **options):
    """Returns the Gradients of attention() with the same options."""
    return self._call(
        'AttentionBackward',
        _request(pb.AttentionBackwardRequest, options, query=query, key=key,
                 value=value, output=output, lse=lse, grad_output=grad_output),
        timeout, lambda reply, *_: _gradients(reply, query))

  def memory_estimate(self, *, options=None, timeout=Timeout.OF_CLIENT,
                      **fields):
    """Returns the MemoryEstimateResponse for the fields of a MemoryEstimateRequest.
    `options` is a dict."""
    return self._call(
        'MemoryEstimate',
        _request(pb.MemoryEstimateRequest, options, **fields), timeout)

  def server_info(self, *, timeout=Timeout.OF_CLIENT):
    """Returns the GetServerInfoResponse of the server."""
    return self._call(
        'GetServerInfo', _request(pb.GetServerInfoRequest, None), timeout)

  def benchmark(self, *, on_progress=None, timeout=Timeout.OF_CLIENT,
                **fields):
    """Returns the BenchmarkResult for the fields of a BenchmarkRequest.

    Calls on_progress with each BenchmarkProgress. A benchmark that fails after the
    first event is not retried.
    """
    request = _request(pb.BenchmarkRequest, None, **fields).message()
    return self._run(
        exchange.benchmark(request, self._attempts(timeout), on_progress))

  def _call(self, method, request, timeout, decode=lambda reply, *_: reply,
            stream=False):
    """Makes the call, and returns decode(reply, output, lse). The arguments of
    `decode` are what exchange.Server.attend returns."""

    def steps():
      attempts = self._attempts(timeout)
      answer = yield from exchange.with_retries(
          attempts,
          lambda: self._server.attend(method, request, attempts, stream))
      return decode(*answer)

    return self._run(steps())

  def _attempts(self, timeout):
    return Attempts(self._retry, self._timeout if timeout is Timeout.OF_CLIENT
                    else checked_timeout(timeout))


def _request(message_type, options, **fields):
  message, payloads = message_type(), {}
  _fill(message, fields, payloads)
  if options:
    _fill(message.options, options, payloads, 'options.')
  return transport.Request(message, payloads)


def _checked(options, query, value):
  """Returns the options, after a check of output_region and lse_region. The server
  knows where these arrays start but not where they end, so it would write past the
  end of an array that is too small."""
  output, lse = options.get('output_region'), options.get('lse_region')
  for name, region in (('output_region', output), ('lse_region', lse)):
    if isinstance(region, np.ndarray):
      for tensor in (query, value):
        if not isinstance(tensor, np.ndarray):
          raise TypeError(
              f'options.{name}: expected every tensor of the call to be an '
              f'array of a SharedRegion, got {type(tensor).__name__}; create it '
              'with region.array(), or leave the option out')
  if isinstance(output, np.ndarray):
    path, dtype = 'options.output_dtype', options.get('output_dtype')
    if dtype is None:
      path, dtype = 'options.output_region', output.dtype.name
      options = options | {'output_dtype': dtype}
    number = _enum_number(pb.DataType.DESCRIPTOR, dtype, path)
    shape = (*query.shape[:-1], value.shape[-1])
    if output.shape != shape or tensors.DTYPES.get(output.dtype.name) != number:
      raise ValueError(f'options.output_region: expected '
                       f'{tensors.name_of(number)} of shape {shape}, got '
                       f'{output.dtype} of {output.shape}')
  if isinstance(lse, np.ndarray):
    size = np.prod(query.shape[:-1])
    if lse.size != size or lse.dtype != np.float32:
      raise ValueError(f'options.lse_region: expected {size} numbers of float32, '
                       f'got {lse.size} of {lse.dtype}')
  return options


def _result(like):
  """Returns a function that makes an AttentionResult from a reply."""

  def decode(reply, output=None, lse=None):
    return AttentionResult(
        tensors.from_message(reply.output, like, output),
        tensors.from_message(reply.lse, like, lse)
        if reply.HasField('lse') else None, reply.stats)

  return decode


def _gradients(reply, like):
  return Gradients(*(tensors.from_message(tensor, like) for tensor in
                     (reply.grad_query, reply.grad_key, reply.grad_value)),
                   reply.stats)


def _fill(message, values, payloads, path=''):
  """Sets fields by name. None leaves a field unset, unless the field is a tensor that
  the call requires. Puts the elements of tensors into `payloads`, in the form that
  transport.Request takes.

  The message's descriptor says which fields there are and of what kind, so a new
  option of the contract needs no code here.
  """
  known = message.DESCRIPTOR.fields_by_name
  if not isinstance(values, collections.abc.Mapping):
    raise TypeError(f'{path.rstrip(".")}: expected a dict of fields, got '
                    f'{_shown(values)}')
  for name, value in values.items():
    if name not in known:
      raise TypeError(f'{path}{name}: no such field'
                      f'{_nearest(name, known.keys())}; the fields are '
                      f'{", ".join(known.keys())}')
    required = known[name].message_type is pb.Tensor.DESCRIPTOR and not path
    if value is not None or required:
      tensors.refuse_losses(path + name, value)
      _set(message, known[name], value, payloads, path + name)


def _set(message, field, value, payloads, path):
  if field.message_type is pb.Tensor.DESCRIPTOR:
    tensor, payload = tensors.describe(path, value)
    getattr(message, field.name).CopyFrom(tensor)
    payloads[path] = getattr(message, field.name), payload
  elif field.message_type is pb.SharedMemory.DESCRIPTOR and isinstance(
      value, np.ndarray):
    place = shared_memory.place_of(path, value)
    if place is None:
      raise ValueError(f'{path}: expected an array of a SharedRegion, got '
                       'another array; create it with region.array()')
    getattr(message, field.name).CopyFrom(place)
  elif field.message_type:
    nested = getattr(message, field.name)
    if isinstance(value, type(nested)):
      nested.CopyFrom(value)
    else:
      nested.SetInParent()
      _fill(nested, value, payloads, path + '.')
  elif field.enum_type:
    setattr(message, field.name, _enum_number(field.enum_type, value, path))
  elif hasattr(getattr(message, field.name), 'extend'):  # a list
    if hasattr(value, 'tolist'):  # an array of NumPy, PyTorch or others
      value = value.tolist()
    items = np.ravel(np.asarray(value, object))
    getattr(message, field.name).extend(
        _scalar(field, item, f'{path}[{index}]')
        for index, item in enumerate(items))
  else:
    setattr(message, field.name, _scalar(field, value, path))


def _scalar(field, value, path):
  """Returns `value` as protobuf takes it. Refuses a value that protobuf would
  round."""
  expected, convert = _SCALARS[field.cpp_type]
  try:
    return convert(value)
  except (OverflowError, TypeError, ValueError) as error:
    kind = TypeError if isinstance(error, TypeError) else ValueError
    advice = ''
    if convert is _int64 and isinstance(value, (float, np.floating)):
      advice = '; convert it explicitly, for example by int() or .astype("int64")'
    raise kind(f'{path}: expected {expected}, got {_shown(value)}{advice}'
              ) from None


def _bool(value):
  if not isinstance(value, (bool, np.bool_)):
    raise TypeError
  return bool(value)


def _int64(value):
  if isinstance(value, (bool, np.bool_)):
    raise TypeError
  number = operator.index(value)
  if not -2**63 <= number < 2**63:
    raise OverflowError
  return number


def _float32(value):
  if isinstance(value, (bool, np.bool_, str, bytes)) or np.ndim(value):
    raise TypeError
  number = float(value)
  if abs(number) > _MAX_FLOAT32 and not math.isinf(number):
    raise OverflowError  # protobuf would make it infinite
  return number


def _bytes(value):
  if not isinstance(value, bytes):
    raise TypeError
  return value


# The kinds of field in requests: what an error says is expected, and the check.
_SCALARS = {
    FieldDescriptor.CPPTYPE_BOOL: ('True or False', _bool),
    FieldDescriptor.CPPTYPE_INT64: ('a whole number (int64)', _int64),
    FieldDescriptor.CPPTYPE_FLOAT: ('a number (float32)', _float32),
    FieldDescriptor.CPPTYPE_STRING: ('bytes', _bytes),  # bytes fields too
}


def _enum_number(enum, value, path):
  """Returns the number of a value of an enum. `value` is its name, such as 'top_left'
  or 'CAUSAL_TOP_LEFT', or the number itself. For a DataType, it can also be a dtype of
  NumPy, ml_dtypes or PyTorch."""
  prefix = enum.values[0].name.removesuffix('UNSPECIFIED')
  if isinstance(value, str):
    name = value.upper().replace('-', '_').removeprefix(prefix)
    if prefix + name in enum.values_by_name:
      return enum.values_by_name[prefix + name].number
  elif type(value) is int:  # bool is an int too
    return value
  if enum is pb.DataType.DESCRIPTOR:
    number = tensors.number_of(value)
    if number is not None:
      return number
    names = (*tensors.FLOATS, 'or a dtype of NumPy, ml_dtypes or PyTorch')
    advice = ''
  else:
    names = [v.name.removeprefix(prefix).lower() for v in list(enum.values)[1:]]
    advice = _nearest(value, names)
    if enum is pb.Causal.DESCRIPTOR and isinstance(value, (bool, np.bool_)):
      advice = ('; with top_left, the first query sees only the first key; with '
                'bottom_right, the last query sees the last key; None means no '
                'causal rule')
  raise ValueError(f'{path}: expected one of {", ".join(names)}, got '
                   f'{_shown(value)}{advice}')


def _nearest(name, known):
  """Returns "; did you mean ...?" if one of `known` is similar to `name`."""
  near = difflib.get_close_matches(str(name).lower(), known, 1, cutoff=0.55)
  return f'; did you mean {near[0]}?' if near else ''


def _shown(value):
  return f'{reprlib.repr(value)} ({type(value).__name__})'
