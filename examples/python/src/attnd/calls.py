"""The calls: requests from arguments and results from replies. Without any I/O,
so that both clients share them."""

import collections.abc
import dataclasses
import typing

import numpy as np

from attnd import shared_memory, tensors
from attnd.v1 import attention_pb2 as pb


@dataclasses.dataclass(frozen=True)
class AttentionResult:
  """What an attention call answers. Torch tensors where the query was one."""
  output: typing.Any  # the query's shape with v_head_dim as its last axis
  lse: typing.Any  # None unless return_lse
  stats: pb.ExecutionStats


@dataclasses.dataclass(frozen=True)
class Gradients:
  """What attention_backward answers."""
  query: typing.Any
  key: typing.Any
  value: typing.Any
  stats: pb.ExecutionStats


class Calls:
  """The calls of both clients; with AsyncClient, await each.

  Arrays are float32, float16 or bfloat16, of NumPy or PyTorch, [batch, heads,
  seq, head_dim] or without the leading axes. `options` are the fields of
  AttentionOptions by name: scale, causal='top_left', window_left, mask, bias,
  return_lse=True ... `timeout` is in seconds, over all attempts. Arrays of a
  SharedRegion stay where they are; where the query is one, output_region, and
  lse_region with return_lse, are arrays of a region too.
  """

  def _call(self, method, request, timeout, decode=lambda reply: reply):
    """What decode makes of the reply to stub.method(request)."""
    raise NotImplementedError

  def attention(self, query, key, value, *, timeout=None, **options):
    """softmax(scores(query, key)) value, as an AttentionResult."""
    return self._call(
        'Attention',
        _request(pb.AttentionRequest, _checked(options, query, value),
                 query=query, key=key, value=value), timeout,
        lambda r: _result(r, query))

  def self_attention(self, sequence, *, timeout=None, **options):
    """attention() with query = key = value = sequence."""
    return self._call(
        'SelfAttention',
        _request(pb.SelfAttentionRequest, _checked(options, sequence, sequence),
                 sequence=sequence), timeout, lambda r: _result(r, sequence))

  def cross_attention(self, queries, kv_sequence, *, timeout=None, **options):
    """attention() with key = value = kv_sequence."""
    return self._call(
        'CrossAttention',
        _request(pb.CrossAttentionRequest,
                 _checked(options, queries, kv_sequence), queries=queries,
                 kv_sequence=kv_sequence), timeout,
        lambda r: _result(r, queries))

  def attention_backward(self, query, key, value, output, lse, grad_output, *,
                         timeout=None, **options):
    """The Gradients of attention() with the same options."""
    return self._call(
        'AttentionBackward',
        _request(pb.AttentionBackwardRequest, options, query=query, key=key,
                 value=value, output=output, lse=lse, grad_output=grad_output),
        timeout, lambda r: _gradients(r, query))

  def memory_estimate(self, *, options=None, timeout=None, **fields):
    """The MemoryEstimateResponse to fields of MemoryEstimateRequest; options
    is a dict."""
    return self._call(
        'MemoryEstimate',
        _request(pb.MemoryEstimateRequest, options, **fields), timeout)

  def server_info(self, *, timeout=None):
    """The GetServerInfoResponse."""
    return self._call('GetServerInfo', pb.GetServerInfoRequest(), timeout)


def attention_request(query, key, value, options):
  return _request(pb.AttentionRequest, options, query=query, key=key,
                  value=value)


def attention_result(reply, query):
  return _result(reply, query)


def benchmark_request(fields):
  return _request(pb.BenchmarkRequest, None, **fields)


def _request(message_type, options, **fields):
  message = message_type()
  _fill(message, fields)
  if options:
    _fill(message.options, options, 'options.')
  return message


def _checked(options, query, value):
  """The options, where the server may write to the arrays that they name: it
  knows where these start, not where they end."""
  output, lse = options.get('output_region'), options.get('lse_region')
  if isinstance(output, np.ndarray):
    options = {'output_dtype': output.dtype.name} | options
    shape = (*query.shape[:-1], value.shape[-1])
    if output.shape != shape or output.dtype.name != options['output_dtype']:
      raise ValueError(f'output_region: expected {options["output_dtype"]} of '
                       f'shape {shape}, got {output.dtype} of {output.shape}')
  if isinstance(lse, np.ndarray):
    size = np.prod(query.shape[:-1])
    if lse.size != size or lse.dtype != np.float32:
      raise ValueError(f'lse_region: expected {size} numbers of float32, got '
                       f'{lse.size} of {lse.dtype}')
  return options


def _result(reply, like):
  lse = (tensors.from_message(reply.lse, like) if reply.HasField('lse')
         else None)
  return AttentionResult(
      tensors.from_message(reply.output, like), lse, reply.stats)


def _gradients(reply, like):
  return Gradients(*(tensors.from_message(tensor, like) for tensor in
                     (reply.grad_query, reply.grad_key, reply.grad_value)),
                   reply.stats)


def _fill(message, values, path=''):
  """Sets fields by name; None leaves a field unset.

  The contract itself says which there are and of what kind, so that an option
  which it gains needs nothing here.
  """
  known = message.DESCRIPTOR.fields_by_name
  for name, value in values.items():
    if name not in known:
      raise TypeError(f'{path}{name}: no such field; there are '
                      f'{", ".join(known)}')
    if value is not None:
      _set(message, known[name], value, path + name)


def _set(message, field, value, path):
  if field.message_type is pb.Tensor.DESCRIPTOR:
    getattr(message, field.name).CopyFrom(tensors.to_message(path, value))
  elif field.message_type is pb.SharedMemory.DESCRIPTOR and isinstance(
      value, np.ndarray):
    place = shared_memory.place_of(path, value)
    if place is None:
      raise ValueError(f'{path}: expected an array of a SharedRegion, got '
                       'another')
    getattr(message, field.name).CopyFrom(place)
  elif field.message_type and isinstance(value, collections.abc.Mapping):
    nested = getattr(message, field.name)
    nested.SetInParent()
    _fill(nested, value, path + '.')
  elif field.message_type:
    getattr(message, field.name).CopyFrom(value)
  elif field.enum_type:
    setattr(message, field.name, _enum_number(field.enum_type, value, path))
  elif field.is_repeated:
    getattr(message, field.name).extend(np.ravel(value).tolist())
  else:
    setattr(message, field.name, value)


def _enum_number(enum, value, path):
  """CAUSAL_TOP_LEFT of 'top_left', its full name or its number."""
  prefix = enum.values[0].name.removesuffix('UNSPECIFIED')
  if isinstance(value, str):
    name = value.upper().replace('-', '_').removeprefix(prefix)
    if prefix + name in enum.values_by_name:
      return enum.values_by_name[prefix + name].number
  elif type(value) is int:  # True would be whatever has number 1
    return value
  if enum is pb.DataType.DESCRIPTOR:
    try:
      return tensors.DTYPES[np.dtype(value).name]
    except (KeyError, TypeError):
      pass
  names = [v.name.removeprefix(prefix).lower() for v in enum.values]
  raise ValueError(f'{path}: expected one of {", ".join(names)}, got {value!r}')
