"""Tests AttentionBackward: compares its gradients with float64, and checks
what it refuses."""

import grpc
import numpy as np
import pytest

from support import reference
from support.client import bf16
from support.problems import (OPTIONS, RAGGED, expected_options, in_bshd,
                              normal)
from support.server import Server

PARTS = ('grad_query', 'grad_key', 'grad_value')


def check(client, response, tensors, grad_output, options):
  expected = reference.gradients(
      *tensors, grad_output, **expected_options(options))
  for part, array in zip(PARTS, expected):
    # The gradients are sums of products over up to 61 keys, or over 37 rows of
    # two heads.
    bound = 64 * np.finfo(np.float32).eps * float(
        np.max(np.abs(array), initial=1))
    reference.assert_close(client.array(getattr(response, part)), array, bound)


@pytest.mark.parametrize('name', OPTIONS)
def test_gradients_of_an_option(client, rng, tensors, name):
  options = OPTIONS[name](rng)
  grad_output = normal(rng, 2, 4, 37, 16)
  response = client.backward(*tensors, grad_output, **options)
  for part, tensor in zip(PARTS, tensors):
    assert tuple(getattr(response, part).shape) == tensor.shape
  check(client, response, tensors, grad_output, options)


@pytest.mark.parametrize('name', ['causal bottom right', 'all at once'])
def test_same_bits_in_every_layout_and_transport(
    client, server, connect, rng, tensors, name):
  options = OPTIONS[name](rng)
  grad_output = normal(rng, 2, 4, 37, 16)
  first = client.backward(*tensors, grad_output, **options)
  unix = connect(server.unix)
  for caller in (client, unix):
    for values in (False, True):
      again = caller.backward(*tensors, grad_output, values=values, **options)
      for part in PARTS:
        tensor = getattr(again, part)
        assert tensor.HasField('values') == values
        assert (client.array(tensor).tobytes() ==
                client.array(getattr(first, part)).tobytes()), part
  bshd = client.backward(
      *in_bshd(tensors), np.swapaxes(grad_output, 1, 2),
      layout=reference.BSHD, **options)
  for part in PARTS:
    assert np.array_equal(
        np.swapaxes(client.array(getattr(bshd, part)), 1, 2),
        client.array(getattr(first, part))), part


@pytest.mark.parametrize('options', [
    {}, {'causal': reference.BOTTOM_RIGHT, 'window_left': 9}], ids=str)
def test_gradients_of_a_ragged_batch(client, rng, options):
  tensors = [normal(rng, 4, 45, 24), normal(rng, 2, 213, 24),
             normal(rng, 2, 213, 16)]
  grad_output = normal(rng, 4, 45, 16)
  options = {**RAGGED, **options}
  response = client.backward(*tensors, grad_output, **options)
  check(client, response, tensors, grad_output, options)


@pytest.mark.parametrize('threads', [1, 2, 3])
def test_same_bits_for_any_threads(
    attnd, client, connect, rng, tensors, threads):
  grad_output = normal(rng, 2, 4, 37, 16)
  expected = client.backward(*tensors, grad_output)
  with Server(attnd, f'--threads={threads}') as server:
    got = connect(server.tcp).backward(*tensors, grad_output)
  for part in PARTS:
    assert getattr(got, part) == getattr(expected, part), part


@pytest.mark.parametrize(
    'q_shape,kv_shape',
    [((2, 3, 0, 8), (2, 3, 5, 8)), ((2, 3, 5, 8), (2, 3, 0, 8)),
     ((0, 3, 5, 8), (0, 3, 5, 8))])
def test_empty_axes(client, q_shape, kv_shape):
  query, kv = np.ones(q_shape), np.ones(kv_shape)
  response = client.backward(query, kv, kv, query)
  for part, shape in zip(PARTS, (q_shape, kv_shape, kv_shape)):
    got = client.array(getattr(response, part))
    assert got.shape == shape
    assert not got.any()


def test_stats_say_what_ran(client, rng):
  tensor = normal(rng, 1, 2, 64, 32)
  stats = client.backward(tensor, tensor, tensor, tensor).stats
  assert stats.kernel
  assert stats.flops == 2 * (3 * 32 + 2 * 32) * 2 * 64 * 64
  assert stats.workspace_bytes > 0


def set_data(tensor, data):
  tensor.data = data


# name: (how to change the request, the wrong field)
SPOILT = {
    'no output': (lambda r, pb: r.ClearField('output'), 'output'),
    'no lse': (lambda r, pb: r.ClearField('lse'), 'lse'),
    'no grad_output': (lambda r, pb: r.ClearField('grad_output'),
                       'grad_output'),
    'no payload': (lambda r, pb: r.lse.ClearField('data'), 'lse'),
    'output of another shape': (
        lambda r, pb: r.output.shape.__setitem__(3, 17), 'output.shape[3]'),
    'lse of another rank': (lambda r, pb: r.lse.shape.append(1), 'lse.shape'),
    'grad_output of another shape': (
        lambda r, pb: r.grad_output.shape.__setitem__(0, 1),
        'grad_output.shape[0]'),
    'output of f16': (
        lambda r, pb: setattr(r.output, 'dtype', pb.DATA_TYPE_F16),
        'output.dtype'),
    'lse of bf16': (
        lambda r, pb: setattr(r.lse, 'dtype', pb.DATA_TYPE_BF16), 'lse.dtype'),
    'too few bytes': (lambda r, pb: set_data(r.grad_output, b'1234'),
                      'grad_output.data'),
    'shared memory': (
        lambda r, pb: setattr(r.value.shared_memory, 'handle', b'1'),
        'value.shared_memory'),
    'a region': (
        lambda r, pb: setattr(r.options.output_region, 'handle', b'1'),
        'options.output_region'),
    'a 16-bit output': (
        lambda r, pb: setattr(r.options, 'output_dtype', pb.DATA_TYPE_F16),
        'options.output_dtype'),
    'bf16 products': (
        lambda r, pb: setattr(r.options, 'precision', pb.PRECISION_BF16),
        'options.precision'),
    'wrong options': (lambda r, pb: setattr(r.options, 'scale', float('nan')),
                      'options.scale'),
}


@pytest.mark.parametrize('name', SPOILT)
def test_wrong_requests_name_the_field(client, rng, tensors, refused, name):
  spoil, field = SPOILT[name]
  request = client.backward_request(*tensors, normal(rng, 2, 4, 37, 16))
  spoil(request, client.pb)
  refusal = refused(lambda: client.stub.AttentionBackward(request))
  assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT, refusal
  assert refusal.field == field, refusal
  assert refusal.domain == 'attnd' and refusal.reason


def test_half_inputs_are_refused(client, rng, tensors, refused):
  request = client.backward_request(*tensors, normal(rng, 2, 4, 37, 16))
  for part in ('query', 'key', 'value'):
    half = client.pb.AttentionBackwardRequest()
    half.CopyFrom(request)
    array = client.array(getattr(request, part))
    getattr(half, part).CopyFrom(client.tensor(bf16(array)))
    refusal = refused(lambda: client.stub.AttentionBackward(half))
    assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT, refusal
    assert refusal.field == f'{part}.dtype', refusal
