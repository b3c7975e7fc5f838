"""Wrong requests are refused with the name of the field, and the server
continues to serve."""

import pathlib
import re
import time

import grpc
import numpy as np
import pytest

from support import http2
from support.client import Refusal

INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED

SERVICE = '/attnd.v1.AttentionService/'
METHODS = ('Attention', 'SelfAttention', 'CrossAttention', 'AttentionBackward',
           'AttentionStream', 'Benchmark', 'MemoryEstimate', 'GetServerInfo')


@pytest.fixture(autouse=True)
def server_lives_on(server, client):
  yield
  assert server.process.poll() is None
  client.stub.GetServerInfo(client.pb.GetServerInfoRequest(), timeout=60)


@pytest.fixture
def good(client):
  """Returns a valid request, which tests then change."""
  query = np.ones((1, 4, 6, 8), np.float32)
  kv = np.ones((1, 2, 5, 8), np.float32)
  return client.request(query, kv, kv)


def set_shape(tensor, *shape):
  tensor.shape[:] = shape


def ragged(request, cu_seqlens_q, cu_seqlens_k, rank=4):
  for tensor in (request.query, request.key, request.value):
    set_shape(tensor, *tensor.shape[4 - rank:])
  request.options.cu_seqlens_q.extend(cu_seqlens_q)
  request.options.cu_seqlens_k.extend(cu_seqlens_k)


def add_bias(request, pb, shape):
  request.options.bias.CopyFrom(pb.Tensor(
      dtype=pb.DATA_TYPE_F32, shape=shape,
      data=b'\0' * 4 * int(np.prod(shape))))


# name: (how to change the request, the wrong field, what was expected, what was
# received)
SPOILT = {
    'too few bytes': (lambda r, _: setattr(r.query, 'data', b'\0' * 764),
                      'query.data', '768', '764'),
    'too many bytes': (lambda r, _: setattr(r.key, 'data', b'\0' * 321),
                       'key.data', '320', '321'),
    'no bytes': (lambda r, _: setattr(r.value, 'data', b''),
                 'value.data', '320', '0'),
    'too few values': (lambda r, _: r.value.values.values.append(1),
                       'value.values', '80', '1'),
    'no payload': (lambda r, _: r.key.ClearField('data'), 'key', 'data', 'no'),
    'no tensor': (lambda r, _: r.ClearField('value'), 'value', '', ''),
    'negative batch': (lambda r, _: set_shape(r.query, -1, 4, 6, 8),
                       'query.shape[0]', '0', '-1'),
    'negative length': (lambda r, _: set_shape(r.key, 1, 2, -5, 8),
                        'key.shape[2]', '0', '-5'),
    'most negative': (lambda r, _: set_shape(r.value, 1, 2, -2**63, 8),
                      'value.shape[2]', '0', str(-2**63)),
    'overflowing product': (
        lambda r, _: [set_shape(t, 2**40, 2**40, 6, 8)
                      for t in (r.query, r.key, r.value)],
        'query.shape', 'at most', '1099511627776'),
    'largest extents': (lambda r, _: set_shape(r.query, *[2**63 - 1] * 4),
                        'query.shape', '', str(2**63 - 1)),
    'heads that do not divide': (lambda r, _: set_shape(r.query, 1, 3, 8, 8),
                                 'query.shape[1]', '2', '3'),
    'key and value heads': (lambda r, _: set_shape(r.value, 1, 1, 10, 8),
                            'value.shape[1]', '2', '1'),
    'key and value lengths': (lambda r, _: set_shape(r.value, 1, 2, 4, 10),
                              'value.shape[2]', '5', '4'),
    'head_dims': (lambda r, _: set_shape(r.key, 1, 2, 10, 4),
                  'key.shape[3]', '8', '4'),
    'batches': (lambda r, _: set_shape(r.key, 2, 1, 5, 8),
                'key.shape[0]', '1', '2'),
    'head_dim 0': (lambda r, _: set_shape(r.query, 1, 4, 6, 0),
                   'query.shape[3]', '1', '0'),
    'rank 1': (lambda r, _: set_shape(r.query, 192), 'query.shape', '4', '1'),
    'rank 5': (lambda r, _: set_shape(r.query, 1, 1, 4, 6, 8),
               'query.shape', '4', '5'),
    'no shape': (lambda r, _: set_shape(r.query), 'query.shape', '4', '0'),
    'mixed ranks': (lambda r, _: set_shape(r.key, 2, 5, 8),
                    'key.shape', '4', '3'),
    'unknown dtype': (lambda r, _: setattr(r.query, 'dtype', 77),
                      'query.dtype', 'F32', '77'),
    'bool tensor': (lambda r, pb: setattr(r.key, 'dtype', pb.DATA_TYPE_BOOL),
                    'key.dtype', 'F32', 'BOOL'),
    'no dtype beside data': (
        lambda r, pb: setattr(r.value, 'dtype', pb.DATA_TYPE_UNSPECIFIED),
        'value.dtype', 'F32', 'UNSPECIFIED'),
    'unknown causal': (lambda r, _: setattr(r.options, 'causal', 9),
                       'options.causal', 'CAUSAL_', '9'),
    'unknown layout': (lambda r, _: setattr(r.options, 'layout', -4),
                       'options.layout', 'BHSD', '-4'),
    'unknown precision': (lambda r, _: setattr(r.options, 'precision', 50),
                          'options.precision', 'PRECISION_', '50'),
    'unknown output_dtype': (
        lambda r, _: setattr(r.options, 'output_dtype', 1000),
        'options.output_dtype', 'F32', '1000'),
    'infinite scale': (lambda r, _: setattr(r.options, 'scale', float('inf')),
                       'options.scale', 'finite', 'inf'),
    'temperature 0': (lambda r, _: setattr(r.options, 'temperature', 0),
                      'options.temperature', '0', '0'),
    'temperature NaN': (
        lambda r, _: setattr(r.options, 'temperature', float('nan')),
        'options.temperature', 'finite', 'nan'),
    'negative block_size': (lambda r, _: setattr(r.options, 'block_size', -1),
                            'options.block_size', '0', '-1'),
    'negative window': (lambda r, _: setattr(r.options, 'window_left', -1),
                        'options.window_left', '0', '-1'),
    'negative window right': (
        lambda r, _: setattr(r.options, 'window_right', -2),
        'options.window_right', '0', '-2'),
    'soft cap 0': (lambda r, _: setattr(r.options, 'logits_soft_cap', 0),
                   'options.logits_soft_cap', '0', '0'),
    'too few slopes': (lambda r, _: r.options.alibi_slopes.extend([1, 2, 3]),
                       'options.alibi_slopes', '4', '3'),
    'a slope without end': (
        lambda r, _: r.options.alibi_slopes.extend([1, float('inf'), 3, 4]),
        'options.alibi_slopes[1]', 'finite', 'inf'),
    'too many sinks': (lambda r, _: r.options.sink_logits.extend([0] * 5),
                       'options.sink_logits', '4', '5'),
    'a sink that is no number': (
        lambda r, _: r.options.sink_logits.extend([0, 0, 0, float('nan')]),
        'options.sink_logits[3]', '-inf', 'nan'),
    'too many offsets': (lambda r, _: r.options.query_offsets.extend([1, 2]),
                         'options.query_offsets', '1', '2'),
    'an offset too far': (
        lambda r, _: r.options.query_offsets.append(-2**63),
        'options.query_offsets[0]', str(2**60), str(-2**63)),
    'too many lengths': (lambda r, _: r.options.key_lengths.extend([1, 2]),
                         'options.key_lengths', '1', '2'),
    'a length too long': (lambda r, _: r.options.key_lengths.append(6),
                          'options.key_lengths[0]', '5', '6'),
    'a negative length': (lambda r, _: r.options.query_lengths.append(-1),
                          'options.query_lengths[0]', '6', '-1'),
    'a list without end': (
        lambda r, _: r.options.query_lengths.extend([1] * 100000),
        'options.query_lengths', '65537', '100000'),
    'half a ragged batch': (lambda r, _: r.options.cu_seqlens_q.append(0),
                            'options.cu_seqlens_k', '1', '0'),
    'the other half': (lambda r, _: r.options.cu_seqlens_k.append(0),
                       'options.cu_seqlens_q', 'offsets', 'none'),
    'a ragged batch of rank 4': (lambda r, _: ragged(r, [0, 6], [0, 5]),
                                 'query.shape', '3', '4'),
    'ragged from 1': (lambda r, _: ragged(r, [1, 6], [0, 5], rank=3),
                      'options.cu_seqlens_q[0]', '0', '1'),
    'ragged and falling': (
        lambda r, _: ragged(r, [0, 4, 3, 6], [0, 1, 1, 5], rank=3),
        'options.cu_seqlens_q[2]', '4', '3'),
    'ragged beyond the end': (
        lambda r, _: ragged(r, [0, 6], [0, 7], rank=3),
        'options.cu_seqlens_k[1]', '5', '7'),
    'ragged beside lengths': (
        lambda r, _: [ragged(r, [0, 6], [0, 5], rank=3),
                      r.options.key_lengths.append(5)],
        'options.key_lengths', 'nothing', 'a value'),
    'bias of another shape': (lambda r, pb: add_bias(r, pb, [6, 4]),
                              'options.bias.shape[1]', '5', '4'),
    'bias of rank 5': (lambda r, pb: add_bias(r, pb, [1] * 5),
                       'options.bias.shape', '4', '5'),
    'bias of bool': (
        lambda r, pb: [add_bias(r, pb, [6, 5]),
                       setattr(r.options.bias, 'dtype', pb.DATA_TYPE_BOOL)],
        'options.bias.dtype', 'F32', 'BOOL'),
    'bias of too few bytes': (
        lambda r, pb: [add_bias(r, pb, [6, 5]),
                       setattr(r.options.bias, 'data', b'123')],
        'options.bias.data', '120', '3'),
    'bias without payload': (
        lambda r, pb: [add_bias(r, pb, [6, 5]),
                       r.options.bias.ClearField('data')],
        'options.bias', 'data', 'no'),
    'mask of floats': (
        lambda r, pb: r.options.mask.CopyFrom(pb.Tensor(
            dtype=pb.DATA_TYPE_F32, shape=[5], data=b'\0' * 20)),
        'options.mask.dtype', 'BOOL', 'F32'),
    'mask of another shape': (
        lambda r, pb: r.options.mask.CopyFrom(pb.Tensor(
            dtype=pb.DATA_TYPE_BOOL, shape=[2, 6, 5], data=b'\0' * 60)),
        'options.mask.shape[0]', '4', '2'),
    'mask of too many bytes': (
        lambda r, pb: r.options.mask.CopyFrom(pb.Tensor(
            dtype=pb.DATA_TYPE_BOOL, shape=[5], data=b'\0' * 6)),
        'options.mask.data', '5', '6'),
    'mask as values': (
        lambda r, pb: r.options.mask.CopyFrom(pb.Tensor(
            dtype=pb.DATA_TYPE_BOOL, shape=[1], values={'values': [1]})),
        'options.mask.values', 'data', '1'),
    'half an element': (
        lambda r, pb: setattr(r.query, 'dtype', pb.DATA_TYPE_F16),
        'query.data', '384', '768'),
    'a 16-bit answer as values': (
        lambda r, pb: [
            r.query.values.values.extend([1] * 192),
            setattr(r.options, 'output_dtype', pb.DATA_TYPE_BF16)],
        'options.output_dtype', 'F32', 'BF16'),
    'values of f16': (
        lambda r, pb: [r.query.values.values.extend([1] * 192),
                       setattr(r.query, 'dtype', pb.DATA_TYPE_F16)],
        'query.dtype', 'F32', 'F16'),
}


@pytest.mark.parametrize('name', SPOILT)
def test_wrong_request(client, good, refused, name):
  spoil, field, expected, got = SPOILT[name]
  spoil(good, client.pb)
  refusal = refused(lambda: client.stub.Attention(good, timeout=60))
  assert refusal.code == INVALID, refusal
  assert refusal.domain == 'attnd' and refusal.reason, refusal
  assert refusal.field.startswith(field), refusal
  assert expected in refusal.description and got in refusal.description, refusal


def test_fields_are_named_as_the_method_calls_them(client, refused):
  pb = client.pb
  short = pb.Tensor(dtype=pb.DATA_TYPE_F32, shape=[4, 8], data=b'\0' * 4)
  whole = client.tensor(np.ones((4, 8)))
  own = refused(lambda: client.stub.SelfAttention(
      pb.SelfAttentionRequest(sequence=short)))
  assert (own.code, own.field) == (INVALID, 'sequence.data')
  cross = refused(lambda: client.stub.CrossAttention(
      pb.CrossAttentionRequest(queries=whole, kv_sequence=short)))
  assert (cross.code, cross.field) == (INVALID, 'kv_sequence.data')
  cross = refused(lambda: client.stub.CrossAttention(
      pb.CrossAttentionRequest(queries=short, kv_sequence=whole)))
  assert (cross.code, cross.field) == (INVALID, 'queries.data')


def test_shared_memory_that_is_off(client, good, refused):
  pb = client.pb
  place = pb.SharedMemory(handle=b'1' * 16)
  good.options.bias.CopyFrom(pb.Tensor(
      dtype=pb.DATA_TYPE_F32, shape=[1], shared_memory=place))
  refusal = refused(lambda: client.stub.Attention(good, timeout=60))
  assert refusal.code == grpc.StatusCode.FAILED_PRECONDITION
  assert refusal.field == 'options.bias.shared_memory'
  assert refusal.reason == 'SHARED_MEMORY_OFF'
  good.options.output_region.CopyFrom(place)
  refusal = refused(lambda: client.stub.Attention(good, timeout=60))
  assert (refusal.code, refusal.field) == (INVALID, 'options.output_region')


def send_raw(channel, method, message):
  """Sends the bytes unchanged. Returns the status code, and the error or
  None."""
  call = channel.unary_stream if method in ('AttentionStream', 'Benchmark') \
      else channel.unary_unary
  raw = call(SERVICE + method, request_serializer=None,
             response_deserializer=None)
  try:
    answer = raw(message, timeout=60)
    if method in ('AttentionStream', 'Benchmark'):
      list(answer)
    return grpc.StatusCode.OK, None
  except grpc.RpcError as error:
    return error.code(), error


# A varint that does not end, a length beyond the message, a group that is not
# closed, field number 0, and a wire type that does not exist.
MALFORMED = (b'\xff' * 11, b'\x0a\xff\x01', b'\x0b', b'\x00\x00', b'\x0f')


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('message', MALFORMED, ids=lambda m: m.hex())
def test_what_does_not_parse(client, method, message):
  code, error = send_raw(client.channel, method, message)
  assert code == INVALID
  refusal = Refusal(error)
  assert refusal.reason == 'MALFORMED_MESSAGE' and refusal.field == ''


# More fields than any request has, and more numbers than any list has, of 2
# bytes each: unknown fields, queries that are merged, groups, and a shape.
TINY_FIELDS = {
    'unknown': (b'\x78\x01' * 2**20, 'at most 1024, got more'),
    'merging': (b'\x0a\x00' * 2**20, 'at most 1024, got more'),
    'groups': (b'\x7b\x7c' * 2**20, 'at most 1024, got more'),
    'a shape': (b'\x0a\x80\x80\x80\x01' + b'\x10\x01' * 2**20,
                'at most 524296, got more'),
}


@pytest.mark.parametrize('name', TINY_FIELDS)
def test_messages_of_tiny_fields(client, name):
  message, limit = TINY_FIELDS[name]
  code, error = send_raw(client.channel, 'Attention', message)
  assert code == INVALID
  refusal = Refusal(error)
  assert refusal.reason == 'TOO_MANY_FIELDS' and refusal.field == ''
  assert limit in error.details() and 'send ' in error.details()


@pytest.mark.parametrize('method', METHODS)
def test_every_method_bounds_the_fields(client, method):
  code, error = send_raw(client.channel, method, b'\xf8\x07\x01' * 1025)
  assert code == INVALID
  assert Refusal(error).reason == 'TOO_MANY_FIELDS'


def decode_thread_wakeups(server):
  """Returns how often the server's decode thread has waited for work."""
  for task in pathlib.Path(f'/proc/{server.process.pid}/task').iterdir():
    if (task / 'comm').read_text() == 'attnd-decode\n':
      status = (task / 'status').read_text()
      return int(re.search(r'\nvoluntary_ctxt_switches:\s*(\d+)', status)[1])
  raise AssertionError('the server has no decode thread')


def wait_for_decode_thread(server, wakeups):
  """Waits until the decode thread has worked, and waits for work again."""
  end = time.monotonic() + 60
  while decode_thread_wakeups(server) <= wakeups:
    assert time.monotonic() < end, 'the decode thread had nothing to do'
    time.sleep(0.001)


# The threads that receive messages also answer health checks.
def test_long_messages_are_decoded_by_a_thread_of_their_own(server, client):
  pb = client.pb
  small = np.ones((1, 1, 8, 4), np.float32)
  many = np.ones((1, 1, 8, 150), np.float32)
  batch = np.ones((2000, 1, 1, 1), np.float32)
  lengths = {'key_lengths': [1] * 2000}
  long_estimate = pb.MemoryEstimateRequest(
      seq_len=1, batch=2000, options=pb.AttentionOptions(**lengths))
  before = decode_thread_wakeups(server)
  for _ in range(20):  # light messages
    client.attention(small, small, small, values=True)
    client.attention(many, many, many)
    client.stub.MemoryEstimate(pb.MemoryEstimateRequest(seq_len=8))
  # The thread can still be busy with messages of another test.
  assert decode_thread_wakeups(server) < before + 10
  for call in (
      lambda: client.attention(many, many, many, values=True),
      lambda: client.attention(batch, batch, batch, **lengths),
      lambda: client.stub.MemoryEstimate(long_estimate),
      lambda: list(client.stub.AttentionStream(client.messages(
          client.request(batch, batch, batch, **lengths))))):
    before = decode_thread_wakeups(server)
    call()
    wait_for_decode_thread(server, before)


def test_truncated_messages(client, good):
  message = good.SerializeToString()
  for method in METHODS[:3]:
    for length in range(0, len(message), 37):
      code, _ = send_raw(client.channel, method, message[:length])
      assert code in (INVALID, UNIMPLEMENTED), (method, length, code)


def test_flipped_bits(client, good, rng):
  message = good.SerializeToString()
  head = len(message) - len(good.value.data)
  for _ in range(200):
    spoilt = bytearray(message)
    spoilt[rng.integers(head)] ^= 1 << rng.integers(8)
    check_earned(send_raw(client.channel, 'Attention', bytes(spoilt)), spoilt)


@pytest.mark.parametrize('method', METHODS)
def test_random_bytes(client, rng, method):
  for length in rng.integers(1, 200, size=60):
    message = rng.bytes(int(length))
    check_earned(send_raw(client.channel, method, message), message)


def check_earned(answer, message):
  """Checks that random bytes which parse as a request get the answer that fits
  their content."""
  code, error = answer
  assert code in (grpc.StatusCode.OK, INVALID, UNIMPLEMENTED,
                  grpc.StatusCode.RESOURCE_EXHAUSTED), (
                      f'{code} for {bytes(message).hex()}: {error}')


@pytest.mark.parametrize('hours', [2_500_000, 5_000_000, 99_999_999])
def test_a_far_deadline_is_no_deadline(server, client, hours):
  """A deadline of eight digits of hours is valid, and acts like no deadline."""
  x = np.ones((4, 4), np.float32)
  request = client.request(x, x, x).SerializeToString()
  for method in ('Attention', 'GetServerInfo'):
    with http2.Connection(server.tcp) as connection:
      connection.call(SERVICE + method,
                      request if method == 'Attention' else b'',
                      headers={'grpc-timeout': f'{hours}H'})
      connection.take_until(lambda: connection.ended, 60,
                            'an answer')
      assert b'grpc-status\x010' in connection.headers[http2.STREAM]
      assert connection.data_bytes[http2.STREAM] > 0


@pytest.mark.parametrize(
    'method', [m for m in METHODS if m != 'AttentionStream'])
@pytest.mark.parametrize('sent', [b'', b'\0\0', http2.message_prefix(100),
                                  http2.message_prefix(100) + b'\n'])
def test_a_call_that_ends_within_its_message(server, method, sent):
  invalid_argument = b'grpc-status\x013'
  with http2.Connection(server.tcp) as connection:
    connection.open_stream(SERVICE + method)
    connection.send_data(sent)
    connection.end()
    connection.take_until(lambda: connection.ended, 60, 'an answer')
    headers = connection.headers[http2.STREAM]
    assert invalid_argument in headers
    assert b'before its message was complete' in headers
