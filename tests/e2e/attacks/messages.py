"""Attacks with messages and headers: tiny fields, odd bytes, and deadlines far
away."""

import collections
import concurrent.futures
import time

import grpc
import numpy as np

from attacks.harness import MIB, attack, percentile
from support.http2 import DATA, frame
from support.raw_http2 import END_STREAM, SERVICE, header_block, message

INVALID_ARGUMENT, INTERNAL, UNKNOWN = 3, 13, 2
UNARY = ('Attention', 'SelfAttention', 'CrossAttention', 'AttentionBackward',
         'MemoryEstimate', 'GetServerInfo')


def varint(value):
  out = bytearray()
  while value >= 128:
    out.append(value % 128 + 128)
    value //= 128
  out.append(value)
  return bytes(out)


def delimited(field, payload):
  return varint(field << 3 | 2) + varint(len(payload)) + payload


# name: a message of this many bytes
SMALL_FIELDS = {
    'unknown fields': lambda size: b'\x78\x01' * (size // 2),
    'an unpacked shape': lambda size: delimited(1, b'\x10\x01' * (size // 2)),
    'a query that is merged': lambda size: b'\x0a\x00' * (size // 2),
    'unpacked cu_seqlens': lambda size: delimited(
        4, b'\x80\x01\x00' * (size // 3)),
}


def send_for(trial, body, senders, seconds):
  """Sends the message repeatedly. Returns the status codes."""
  codes = collections.Counter()
  limit = time.monotonic() + seconds

  def run():
    client = trial.client()
    call = client.channel.unary_unary(SERVICE + 'Attention')
    while time.monotonic() < limit:
      try:
        call(body, timeout=60)
        codes['OK'] += 1
      except grpc.RpcError as error:
        codes[error.code().name] += 1
  with concurrent.futures.ThreadPoolExecutor(senders) as pool:
    for one in [pool.submit(run) for _ in range(senders)]:
      one.result()
  return codes


@attack('tiny-fields', watched=False, sends='messages of tens of MiB whose '
        'fields have two bytes, from three senders', promise='health p99 of '
        '50 ms, or of twice what it is beside one field of the same size')
def tiny_fields(trial):
  size = trial.pick(96, 24) * MIB
  seconds = trial.pick(4, 1.5)

  def p99_beside(body):
    seen = {}
    with trial.watched(seen):
      codes = send_for(trial, body, 3, seconds)
    trial.require(not seen['wrong'], f'{seen["wrong"]} wrong answers')
    trial.require(not codes['INTERNAL'] + codes['UNKNOWN'], f'{dict(codes)}')
    return percentile(seen['health_ms'], 99)
  control = p99_beside(delimited(15, bytes(size)))
  trial.figure(f'health p99 beside one field {control:.0f} ms')
  allowed = max(50 * (5 if trial.sanitized else 1), 2 * control)
  for name, make in SMALL_FIELDS.items():
    p99 = p99_beside(make(size))
    trial.figure(f'{name} {p99:.0f}')
    trial.require(p99 <= allowed, f'health p99 is {p99:.0f} ms beside {name}, '
                  f'allowed is {allowed:.0f}')


def status_of(trial, block, data):
  """Returns gRPC's status code for a call of this many bytes, on a new
  connection."""
  one = trial.connect(seconds=5)
  stream = one.open(block, 0 if data else END_STREAM)
  if data:
    one.send(frame(DATA, data, END_STREAM, stream))
  code = one.wait_over(stream, 5)
  one.close()
  return code


@attack('cut-messages', sends='calls that end before their message, within '
        'its prefix and within it', promise='INVALID_ARGUMENT')
def cut_messages(trial):
  whole = message(b'\x0a\x10' + bytes(16))
  wrong = collections.Counter()
  for method in (*UNARY, 'Benchmark'):
    for size in (0, 3, 5, 12):
      code = status_of(trial, header_block(method), whole[:size])
      if code != INVALID_ARGUMENT:
        wrong[code] += 1
        last = f'{method} of {size} bytes'
  trial.require(not wrong, wrong and
                f'codes {dict(wrong)}, the last one to {last}')
  for size in (0, 3, 12):
    code = status_of(trial, header_block('AttentionStream'), whole[:size])
    trial.require(code not in (None, INTERNAL, UNKNOWN),
                  f'AttentionStream of {size} bytes is answered {code}')


@attack('far-deadlines', sends='grpc-timeout up to 99999999H',
        promise='the call is served')
def far_deadlines(trial):
  client = trial.client()
  body = client.self_request(np.ones((4, 2), np.float32)).SerializeToString()
  for timeout in ('99999999H', '5000000H', '2500000H', '99999999M',
                  '99999999S', '99999999m'):
    code = status_of(trial, header_block('SelfAttention', grpc_timeout=timeout),
                     message(body))
    trial.require(code == 0, f'{timeout} is answered {code}')


def seeds(client, rng):
  """Returns valid messages of every method, which the attack mutates."""
  pb = client.pb
  array = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  query, key = array(2, 3, 5, 8), array(2, 3, 7, 8)
  options = {'causal': 'top_left', 'window_left': 3, 'scale': 0.3,
             'query_lengths': [5, 2], 'bias': array(5, 7),
             'mask': np.ones((5, 7), bool), 'alibi_slopes': [1, 2, 3],
             'return_lse': True}
  request = client.request(query, key, key, **options)
  plain = client.request(query, key, key, values=True)
  header, *chunks = client.messages(client.request(query, key, key), 256)
  return {
      'Attention': [request, plain, client.request(
          array(6, 8), array(9, 8), array(9, 8), cu_seqlens_q=[0, 2, 6],
          cu_seqlens_k=[0, 4, 9])],
      'SelfAttention': [client.self_request(query, causal='bottom_right')],
      'CrossAttention': [pb.CrossAttentionRequest(
          queries=client.tensor(query), kv_sequence=client.tensor(key))],
      'AttentionBackward': [client.backward_request(
          query, key, key, query)],
      'MemoryEstimate': [pb.MemoryEstimateRequest(
          seq_len=4096, num_q_heads=8, num_kv_heads=2, head_dim=64,
          max_batch_for_budget_bytes=1 << 30, options=request.options)],
      'GetServerInfo': [pb.GetServerInfoRequest()],
      'Benchmark': [pb.BenchmarkRequest(num_vectors=4, dimensions=2,
                                        repetitions=1)],
      'AttentionStream': [header, chunks[0]],
  }


HOSTILE = [varint(v) for v in (0, 1, 2**31 - 1, 2**31, 2**32, 2**53, 2**62,
                               2**63 - 1, 2**63, 2**64 - 1)]


def mutated(draw, data):
  data = bytearray(data)
  for _ in range(draw.randint(1, 4)):
    at = draw.randrange(len(data) + 1)
    kind = draw.randrange(6)
    if kind == 0 and data:
      data[at % len(data)] ^= 1 << draw.randrange(8)
    elif kind == 1:
      data[at:at] = draw.choice(HOSTILE)
    elif kind == 2 and data:
      data[at % len(data):at % len(data) + 1] = draw.choice(HOSTILE)
    elif kind == 3:
      del data[at:at + draw.randint(1, 20)]
    elif kind == 4:
      data[at:at] = draw.randbytes(draw.randint(1, 20))
    else:
      start = draw.randrange(len(data) + 1)
      data[at:at] = data[start:start + draw.randint(1, 60)]
  return bytes(data)


@attack('mutated-messages', sends='thousands of right messages of every '
        'method with some bytes changed', promise='no INTERNAL, no UNKNOWN, '
        'no crash', settings={'max-benchmark-vectors': 64})
def mutated_messages(trial):
  client = trial.client()
  originals = seeds(client, np.random.default_rng(trial.options.seed))
  codes, examples = collections.Counter(), {}

  def one_of(method):
    original = trial.random.choice(originals[method]).SerializeToString()
    body = mutated(trial.random, original)
    channel = client.channel
    try:
      if method == 'AttentionStream':
        list(channel.stream_stream(SERVICE + method)(
            iter([body] * trial.random.randint(1, 2)), timeout=10))
      elif method == 'Benchmark':
        list(channel.unary_stream(SERVICE + method)(body, timeout=1))
      else:
        channel.unary_unary(SERVICE + method)(body, timeout=10)
      return 'OK', body
    except grpc.RpcError as error:
      return error.code().name, (method, error.details(), body[:80])
  count = trial.pick(12_000, 2500)
  limit = time.monotonic() + trial.pick(60, 15)
  methods = [m for m in originals for _ in range(1 if m == 'Benchmark' else 12)]
  for _ in range(count):
    if time.monotonic() > limit:
      break
    code, example = one_of(trial.random.choice(methods))
    codes[code] += 1
    examples[code] = example
  trial.figure(' '.join(f'{n} {c}' for c, n in codes.most_common()))
  for code in ('INTERNAL', 'UNKNOWN', 'UNAVAILABLE'):
    trial.require(not codes[code],
                  f'{codes[code]} {code}, the last one {examples.get(code)}')
