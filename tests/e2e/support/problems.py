"""Problems that together use every option, for each way to call the server."""

import numpy as np

from support import reference
from support.client import bf16, widened

INF = float('inf')


def normal(rng, *shape):
  return rng.standard_normal(shape).astype(np.float32)


def mask_of(rng, *shape):
  return rng.random(shape) < 0.7


# These problems have 2 batch entries, 4 query heads for 2 kv heads, 37 rows and
# 61 keys.
QUERY, KEY, VALUE = (2, 4, 37, 24), (2, 2, 61, 24), (2, 2, 61, 16)

# name: the options, with random arrays for tensors
OPTIONS = {
    'scale': lambda _: {'scale': 0.3},
    'negative scale': lambda _: {'scale': -0.2},
    'temperature': lambda _: {'temperature': 2.5},
    'block_size': lambda _: {'block_size': 16},
    'causal top left': lambda _: {'causal': reference.TOP_LEFT},
    'causal bottom right': lambda _: {'causal': reference.BOTTOM_RIGHT},
    'one query offset': lambda _: {
        'query_offsets': [20], 'causal': reference.TOP_LEFT},
    'query offsets': lambda _: {
        'query_offsets': [-5, 40], 'causal': reference.BOTTOM_RIGHT},
    'offsets without causal': lambda _: {
        'query_offsets': [3], 'window_left': 4},
    'window left': lambda _: {'window_left': 7},
    'window right': lambda _: {'window_right': 0},
    'window of nothing but itself': lambda _: {
        'window_left': 0, 'window_right': 0},
    'window and causal': lambda _: {
        'window_left': 11, 'causal': reference.BOTTOM_RIGHT},
    'window without end': lambda _: {
        'window_left': 2**63 - 1, 'window_right': 2**63 - 1},
    'soft cap': lambda _: {'logits_soft_cap': 1.5},
    'alibi': lambda _: {'alibi_slopes': [0.5, 0.25, 0, -0.125]},
    'alibi and causal': lambda _: {
        'alibi_slopes': [0.5, 0.25, 0.125, 0.0625],
        'causal': reference.BOTTOM_RIGHT},
    'sinks': lambda _: {'sink_logits': [0.5, -3, 2, -INF]},
    'bias of everything': lambda rng: {'bias': normal(rng, 2, 4, 37, 61)},
    'bias of keys': lambda rng: {'bias': normal(rng, 61)},
    'bias of heads': lambda rng: {'bias': normal(rng, 4, 1, 1)},
    'bias of one number': lambda rng: {'bias': normal(rng, 1)},
    'bias of f16': lambda rng: {
        'bias': normal(rng, 37, 61).astype(np.float16)},
    'bias of bf16': lambda rng: {'bias': bf16(normal(rng, 2, 1, 1, 61))},
    'bias that hides': lambda rng: {
        'bias': np.where(mask_of(rng, 37, 61), 0, -INF).astype(np.float32)},
    'mask of everything': lambda rng: {'mask': mask_of(rng, 2, 4, 37, 61)},
    'mask of keys': lambda rng: {'mask': mask_of(rng, 2, 1, 1, 61)},
    'mask of rows': lambda rng: {'mask': mask_of(rng, 37, 1)},
    'mask of nothing': lambda _: {'mask': np.zeros((1, 1), bool)},
    'lengths': lambda _: {'query_lengths': [37, 5], 'key_lengths': [0, 50]},
    'lengths and causal': lambda _: {
        'query_lengths': [20, 37], 'key_lengths': [61, 9],
        'causal': reference.BOTTOM_RIGHT},
    'all at once': lambda rng: {
        'scale': 0.4, 'temperature': 1.5, 'block_size': 32,
        'causal': reference.BOTTOM_RIGHT, 'window_left': 30,
        'logits_soft_cap': 3, 'alibi_slopes': [0.1, 0, 0.2, 0.3],
        'sink_logits': [1, 0, -1, -INF], 'bias': normal(rng, 4, 37, 61),
        'mask': mask_of(rng, 2, 1, 37, 61), 'query_lengths': [37, 30],
        'key_lengths': [61, 40]},
}


def expected_options(options):
  """Returns the options for the reference: float32 numbers for 16-bit tensors,
  and no hints."""
  options = {k: v for k, v in options.items() if k != 'block_size'}
  if 'bias' in options:
    options['bias'] = widened(options['bias'])
  return options


def in_bshd(tensors):
  return [np.swapaxes(t, 1, 2) for t in tensors]


# Long prompts and single queries, and entries without rows or without keys.
CU_SEQLENS_Q = [0, 40, 41, 41, 44, 45]
CU_SEQLENS_K = [0, 40, 140, 150, 150, 213]
RAGGED = {'cu_seqlens_q': CU_SEQLENS_Q, 'cu_seqlens_k': CU_SEQLENS_K}
