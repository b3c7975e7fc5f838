"""Random problems for measuring the memory of calls, and their messages. Only
sizes matter, so all elements are the same."""

import dataclasses

from support import shared_memory

FILL = b'\x3c'  # about 0.0115 as f32 and bf16, 1.06 as f16
SIZES = {'F32': 4, 'F16': 2, 'BF16': 2, 'BOOL': 1}
TRANSPORTS = ('INLINE', 'STREAM', 'SHARED_MEMORY')
CONCURRENCIES = (1, 2, 4, 8)
TYPES = ('F32', 'F16', 'BF16')
ALIGNMENT = 64


@dataclasses.dataclass
class Problem:
  """One question to MemoryEstimate, and the call that it is about."""
  transport: str
  concurrency: int
  dtype: str
  batch: int
  q_heads: int
  kv_heads: int
  q_len: int
  kv_len: int
  head_dim: int
  v_head_dim: int
  layout: str
  ragged: bool
  chunk_bytes: int
  features: tuple  # names, for the report
  options: dict  # fields of AttentionOptions that are not tensors
  extras: dict  # bias and mask: type and shape

  def __str__(self):
    q = f'{self.batch}x{self.q_heads}x{self.q_len}x{self.head_dim}'
    kv = f'{self.kv_heads}x{self.kv_len}x{self.v_head_dim}'
    extras = ''.join(f' {name}={dtype}{list(shape)}'
                     for name, (dtype, shape) in self.extras.items())
    return (f'{self.transport} x{self.concurrency} {self.dtype} q={q} kv={kv} '
            f'{self.layout} {" ".join(self.features)}{extras}')

  def inputs(self):
    """Returns the type and shape of each tensor of the request."""
    query, key, value, _ = self.shapes()
    return {'query': (self.dtype, query), 'key': (self.dtype, key),
            'value': (self.dtype, value), **self.extras}

  def copied_bytes(self):
    """Returns the size of the tensors that the server copies."""
    inputs = self.extras if self.transport == 'SHARED_MEMORY' else self.inputs()
    return sum(size_bytes(*spec) for name, spec in inputs.items()
               if name == 'mask' or self.transport != 'SHARED_MEMORY')

  def shapes(self):
    """Returns the shapes of query, key, value and output."""
    shapes = []
    for heads, length, dim in (
        (self.q_heads, self.q_len, self.head_dim),
        (self.kv_heads, self.kv_len, self.head_dim),
        (self.kv_heads, self.kv_len, self.v_head_dim),
        (self.q_heads, self.q_len, self.v_head_dim)):
      axes = [length, heads] if self.layout == 'BSHD' else [heads, length]
      shapes.append((*([] if self.ragged else [self.batch]), *axes, dim))
    return shapes


def size_bytes(dtype, shape):
  size = SIZES[dtype]
  for extent in shape:
    size *= extent
  return size


def _options(rng, batch, q_heads, q_len, kv_len, ragged, features):
  """Returns the values of the options that `features` names."""
  options = {}
  if 'lse' in features:
    options['return_lse'] = True
  if 'causal' in features:
    options['causal'] = f'CAUSAL_{rng.choice(["TOP_LEFT", "BOTTOM_RIGHT"])}'
  if 'window' in features:
    options['window_left'] = rng.randint(0, kv_len)
    options['window_right'] = rng.randint(0, kv_len)
  if 'alibi' in features:
    options['alibi_slopes'] = [0.5] * q_heads
  if 'sinks' in features:
    options['sink_logits'] = [0.25] * q_heads
  if 'soft_cap' in features:
    options['logits_soft_cap'] = 10.0
  if 'output_f32' in features:
    options['output_dtype'] = 'DATA_TYPE_F32'
  if 'lengths' in features:
    options['query_lengths'] = [rng.randint(0, q_len) for _ in range(batch)]
    options['key_lengths'] = [rng.randint(0, kv_len) for _ in range(batch)]
  if ragged:
    entries = rng.randint(1, 32)
    for name, length in (('cu_seqlens_q', q_len), ('cu_seqlens_k', kv_len)):
      cuts = sorted(rng.randint(0, length) for _ in range(entries - 1))
      options[name] = [0, *cuts, length]
  return options


def random_problem(rng, transport, concurrency, dtype):
  """Returns a problem whose calls together hold about 2 to 64 MiB, or, in two
  of three cases, 70 to 112 MiB."""
  smallest, factor = rng.choice([(2, 32), (70, 1.6), (70, 1.6)])
  target_bytes = (smallest << 20) * factor ** rng.random() / concurrency
  ragged = rng.random() < 0.2
  group = rng.choice([1, 1, 2, 4, 8])
  kv_heads = rng.choice([1, 2, 3, 4, 8])
  q_heads = group * kv_heads
  head_dim = rng.choice([24, 32, 64, 64, 80, 128, 128, 256])
  v_head_dim = rng.choice([head_dim, head_dim, head_dim, 16, 128])
  chance = {'lse': 0.3, 'causal': 0.3, 'window': 0.2, 'alibi': 0.15,
            'sinks': 0.15, 'soft_cap': 0.15, 'output_f32': 0.2}
  if not ragged:
    chance |= {'lengths': 0.25, 'bias': 0.3,
               'mask': 0.8 if transport == 'SHARED_MEMORY' else 0.3}
  features = [name for name in chance if rng.random() < chance[name]]
  if group > 1:
    features.append('gqa')
  if ragged:
    features.append('ragged')
  shortest = 300 if transport == 'SHARED_MEMORY' else 1
  q_len, kv_len = rng.randint(shortest, 700), rng.randint(shortest, 700)
  extras = {}
  for name, dtypes in (('bias', ['F32', 'F16', 'BF16']), ('mask', ['BOOL'])):
    if name in features:
      extras[name] = (rng.choice(dtypes), None)
  full = {name: rng.random() for name in extras}

  def made(batch):
    """The problem with this many batch entries, or as many times as long."""
    lengths = (q_len * batch, kv_len * batch) if ragged else (q_len, kv_len)
    problem = Problem(
        transport, concurrency, dtype, 1 if ragged else batch, q_heads,
        kv_heads, *lengths, head_dim, v_head_dim, layout, ragged, chunk_bytes,
        tuple(features), {}, {})
    for name, (kind, _) in extras.items():
      shapes = [(batch, q_heads, q_len, kv_len), (batch, 1, q_len, kv_len),
                (q_len, kv_len), (batch, 1, 1, kv_len)]
      # Of the tensors in shared memory, the server copies only a mask.
      if transport == 'SHARED_MEMORY':
        shapes = shapes[:1] if name == 'mask' else shapes[2:]
      problem.extras[name] = (kind, shapes[int(full[name] * len(shapes))])
    return problem

  layout = rng.choice(['BHSD', 'BSHD'])
  chunk_bytes = rng.choice([1 << 16, 1 << 18, 1 << 20, 1 << 20])

  def held_bytes(problem):
    tensors = [size_bytes(dtype, shape) for shape in problem.shapes()]
    mask = [size_bytes(*extra) for extra in problem.extras.values()]
    if transport == 'SHARED_MEMORY':
      return size_bytes(*problem.extras['mask']) if 'mask' in extras else 0
    copies = 2 if transport == 'INLINE' else 1
    return copies * (sum(tensors[:3]) + sum(mask)) + tensors[3]

  grown = held_bytes(made(2)) - held_bytes(made(1))
  batch = 1
  if grown > 0:
    batch = max(1, round((target_bytes - held_bytes(made(1))) / grown))
  problem = made(batch)
  problem.options = _options(rng, problem.batch, q_heads, problem.q_len,
                             problem.kv_len, ragged, features)
  problem.options['layout'] = f'LAYOUT_{layout}'
  return problem


def estimate_request(pb, problem):
  """Returns the question to MemoryEstimate."""
  request = pb.MemoryEstimateRequest(
      batch=problem.batch, num_q_heads=problem.q_heads,
      num_kv_heads=problem.kv_heads, q_len=problem.q_len,
      kv_len=problem.kv_len, head_dim=problem.head_dim,
      v_head_dim=problem.v_head_dim, dtype=f'DATA_TYPE_{problem.dtype}',
      concurrency=problem.concurrency,
      transport=f'TRANSPORT_{problem.transport}',
      options=pb.AttentionOptions(**problem.options))
  for name, (dtype, shape) in problem.extras.items():
    getattr(request.options, name).CopyFrom(_described(pb, dtype, shape))
  return request


def _described(pb, dtype, shape):
  return pb.Tensor(dtype=f'DATA_TYPE_{dtype}', shape=shape)


def _header(pb, problem):
  """Returns the request without payloads, and its tensors by name."""
  request = pb.AttentionRequest(options=pb.AttentionOptions(**problem.options))
  tensors = {}
  for name, (dtype, shape) in problem.inputs().items():
    holder = request.options if name in problem.extras else request
    tensors[name] = getattr(holder, name)
    tensors[name].CopyFrom(_described(pb, dtype, shape))
  return request, tensors


def inline_message(pb, problem):
  """Returns the request of Attention, serialized."""
  request, tensors = _header(pb, problem)
  for name, spec in problem.inputs().items():
    tensors[name].data = FILL * size_bytes(*spec)
  return request.SerializeToString()


def stream_messages(pb, problem):
  """Returns the messages of AttentionStream, serialized."""
  request, _ = _header(pb, problem)
  messages = [pb.AttentionStreamRequest(header=request).SerializeToString()]
  for name, spec in problem.inputs().items():
    size = size_bytes(*spec)
    for begin in range(0, size, problem.chunk_bytes):
      chunk = pb.TensorChunk(
          role=f'TENSOR_ROLE_{name.upper()}', offset_bytes=begin,
          data=FILL * min(problem.chunk_bytes, size - begin))
      messages.append(
          pb.AttentionStreamRequest(chunk=chunk).SerializeToString())
  return messages


def shared_message(pb, problem, socket_path):
  """Returns a region with the tensors of the call, and the serialized request
  that names it."""
  request, tensors = _header(pb, problem)
  output_dtype = problem.options.get(
      'output_dtype', f'DATA_TYPE_{problem.dtype}').removeprefix('DATA_TYPE_')
  output = problem.shapes()[3]
  specs = {**problem.inputs(), 'output': (output_dtype, output),
           'lse': ('F32', output[:-1])}
  offsets, end = {}, 0
  for name, spec in specs.items():
    offsets[name] = end
    end += -(-size_bytes(*spec) // ALIGNMENT) * ALIGNMENT
  region = shared_memory.Region(socket_path, end)
  for name, tensor in tensors.items():
    size = size_bytes(*specs[name])
    region.map[offsets[name]:offsets[name] + size] = FILL * size
    tensor.shared_memory.CopyFrom(region.place(pb, offsets[name]))
  options = request.options
  options.output_region.CopyFrom(region.place(pb, offsets['output']))
  if options.return_lse:
    options.lse_region.CopyFrom(region.place(pb, offsets['lse']))
  return region, request.SerializeToString()
