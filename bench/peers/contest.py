#!/usr/bin/env python3
"""Compares attnd's core with PyTorch, ONNX Runtime, OpenVINO and ggml.

Every system runs in its own process with one thread, and all of them use the
same processor. Only one system computes at a time: they take turns, round
after round. The limit of a case (the FMA peak, or the stream bandwidth if keys
are read for a single query row) is measured before and after each turn. Each
share is a median of ratios that were measured next to each other, with the
same tensors. If the machine changed its speed during a turn, the turn is
measured again, for every system. All answers are compared with attnd's.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import numpy

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import limits  # noqa: E402
import run_file  # noqa: E402


def case(name, q_heads, q_len, head_dim, dtype='f32', kv_heads=None,
         kv_len=None, causal=False, backward=False):
  return {'name': name, 'dtype': dtype, 'batch': 1, 'q_heads': q_heads,
          'kv_heads': kv_heads or q_heads, 'q_len': q_len,
          'kv_len': kv_len or q_len, 'head_dim': head_dim, 'causal': causal,
          'backward': backward, 'threads': 1}


CASES = [
    case('prefill', 1, 4096, 128),
    case('prefill', 1, 4096, 64),
    case('prefill', 1, 16384, 64),
    case('short', 32, 128, 64),
    case('prefill_causal', 1, 4096, 128, causal=True),
    case('odd', 8, 1000, 80),
    case('odd', 8, 1537, 96),
    case('odd', 8, 777, 100),
    case('prefill', 1, 4096, 128, 'bf16'),
    case('prefill', 1, 4096, 64, 'bf16'),
    case('prefill', 1, 4096, 128, 'f16'),
    case('decode', 8, 1, 128, kv_len=32768),
    case('decode', 8, 1, 128, 'bf16', kv_len=32768),
    case('decode', 8, 1, 128, 'f16', kv_len=32768),
    case('decode_gqa', 32, 1, 128, kv_heads=8, kv_len=32768),
    case('decode_gqa', 32, 1, 128, 'bf16', kv_heads=8, kv_len=32768),
    case('decode_gqa', 32, 1, 128, 'f16', kv_heads=8, kv_len=32768),
    case('backward', 1, 2048, 64, backward=True),
    case('backward', 1, 2048, 128, backward=True),
    case('backward', 1, 2048, 128, backward=True, causal=True),
]

# The largest error of an answer, compared with attnd's: the root mean square of
# the difference, divided by that of the answer. ggml adds values of f16 in f16,
# which gives an error of 0.027 over 32 Ki keys.
TOLERANCE = {'f32': 1e-4, 'f16': 5e-2, 'bf16': 5e-2}


# The rule is that of core_bench (core_rounds.cc). A turn counts if its limit
# differed by less than DRIFT before and after it. AMX also has to run at
# AMX_PACE of the best speed that was seen, and at AMX_OVER_FMA times the peak
# of multiply-adds, because a busy neighbour slows it down to a third. Otherwise
# the run waits for AMX, and measures the turn again, at most as often as the
# numbers below say.
DRIFT, AMX_PACE, AMX_OVER_FMA, PATIENCE = 0.1, 0.75, 7, 300


class Pace:
  """Measures the limit of a case, in the process of attnd, around every
  turn."""

  def __init__(self, ours):
    self.ours = ours
    self.best_amx_rate = max(ours.ask('peak')['amx_rate'] for _ in range(100))

  def turn(self, it, limit, seconds):
    """Returns the seconds of a call, the limit, and whether the machine kept
    its speed."""
    tries = iter(range(PATIENCE))
    while True:
      before = self.ours.ask(limit)
      if not self.amx_keeps(before, limit) and next(tries, None) is not None:
        continue
      call = it.ask('turn', seconds=seconds)['seconds']
      after = self.ours.ask(limit)
      low, high = sorted([before['rate'], after['rate']])
      kept = (high < (1 + DRIFT) * low and self.amx_keeps(before, limit) and
              self.amx_keeps(after, limit))
      if kept or next(tries, None) is None:
        return call, (low + high) / 2, kept

  def amx_keeps(self, measured, limit):
    if limit == 'stream' or measured['amx_rate'] == 0:
      return True
    self.best_amx_rate = max(self.best_amx_rate, measured['amx_rate'])
    return measured['amx_rate'] >= max(AMX_PACE * self.best_amx_rate,
                                       AMX_OVER_FMA * measured['rate'])


class Contestant:
  """One of the compared systems: a process that computes when it is told to."""

  def __init__(self, name, command, cpu):
    # The affinity is set before the systems start, because libraries choose the
    # size of their thread pools by it. attnd's scheduler pins itself to the
    # last processor that is available.
    self.name = name
    self.process = subprocess.Popen(
        ['taskset', '-c', str(cpu), *map(str, command)], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, 'OMP_NUM_THREADS': '1'})

  def ask(self, what, **details):
    print(json.dumps({'do': what, **details}), file=self.process.stdin,
          flush=True)
    line = self.process.stdout.readline()
    if not line:
      raise RuntimeError(f'{self.name} died while asked to {what}')
    return json.loads(line)

  def close(self):
    with contextlib.suppress(BrokenPipeError):
      self.process.stdin.close()
    self.process.wait()


def label(c):
  lengths = (f'N {c["q_len"]}' if c['q_len'] == c['kv_len'] else
             f'{c["q_len"]} over {c["kv_len"]}')
  heads = ('1 head' if c['q_heads'] == 1 else
           f'{c["q_heads"]} heads' if c['q_heads'] == c['kv_heads'] else
           f'{c["q_heads"]}:{c["kv_heads"]} heads')
  return (f'{c["name"]} {c["dtype"]}, {heads}, {lengths}, '
          f'head_dim {c["head_dim"]}'
          f'{", causal" if c["causal"] and c["backward"] else ""}')


def write_tensors(c, folder):
  rng = numpy.random.default_rng(1)
  q_shape = c['q_heads'], c['q_len'], c['head_dim']
  kv_shape = c['kv_heads'], c['kv_len'], c['head_dim']
  for name, shape in (('query', q_shape), ('key', kv_shape),
                      ('value', kv_shape), ('grad_output', q_shape)):
    if name == 'grad_output' and not c['backward']:
      continue
    values = rng.standard_normal(shape, numpy.float32)
    if c['dtype'] == 'f16':
      values = values.astype(numpy.float16)
    elif c['dtype'] == 'bf16':
      bits = values.view(numpy.uint32)
      values = ((bits + 0x7fff + (bits >> 16 & 1)) >> 16).astype(numpy.uint16)
    values.tofile(pathlib.Path(folder, name))


def flops(c):
  rows, keys = c['q_len'], c['kv_len']
  pairs = rows * (rows + 1) // 2 if c['causal'] else rows * keys
  products = 5 if c['backward'] else 2
  return c['q_heads'] * pairs * products * 2 * c['head_dim']


def moved_bytes(c):
  size = 4 if c['dtype'] == 'f32' else 2
  return size * c['head_dim'] * 2 * (c['q_heads'] * c['q_len'] +
                                     c['kv_heads'] * c['kv_len'])


def measure(c, contestants, pace, folder, options):
  """Returns the record of one case."""
  write_tensors(c, folder)
  ours = contestants[0]
  refused, errors, running, answer = {}, {}, [], None
  for it in contestants:
    reply = it.ask('prepare', case=c, folder=folder)
    if 'refused' in reply:
      refused[it.name] = reply['refused']
      continue
    running.append(it)
    path = os.path.join(folder, 'answer')
    it.ask('answer', path=path)
    values = numpy.fromfile(path, numpy.float32)
    if it is ours:
      answer = values
      continue
    if values.size != answer.size:
      raise RuntimeError(f'{it.name} answers {values.size} numbers')
    errors[it.name] = float(numpy.sqrt(numpy.mean((values - answer)**2) /
                                       numpy.mean(answer**2)))

  limit = 'stream' if c['q_len'] == 1 else 'peak'
  work = moved_bytes(c) if limit == 'stream' else flops(c)
  shares = {it.name: [] for it in running}
  limits = []
  unsteady = 0
  for _ in range(options.rounds):
    for it in running:
      seconds, rate, kept = pace.turn(it, limit, options.seconds)
      shares[it.name].append(work / seconds / rate)
      limits.append(rate)
      unsteady += not kept
  record = {**c, 'label': label(c), 'limit': limit,
            'limit_per_s': statistics.median(limits),
            'shares': {name: statistics.median(s)
                       for name, s in shares.items()},
            'rounds': options.rounds, 'unsteady_turns': unsteady,
            'refused': refused,
            'relative_rms_difference': errors}
  peers = {name: s for name, s in record['shares'].items()
           if name != ours.name}
  if peers:
    best = max(peers, key=peers.get)
    record['best_peer'] = best
    record['over_best_peer'] = statistics.median(
        a / b for a, b in zip(shares[ours.name], shares[best]))
    record['place'] = place(record['over_best_peer'])
  # This frees the tensors.
  for it in contestants:
    it.ask('forget')
  return record


def place(over):
  """Returns the verdict for a ratio to the best peer. 2 % are noise."""
  return ('first' if over >= 1.02 else 'level' if over >= 0.98 else
          'not first')


def row(record, names):
  shares = record['shares']
  cells = ' '.join(f'{shares[n]:12.3f}' if n in shares else f'{"-":>12}'
                   for n in names)
  verdict = ('' if 'place' not in record else
             f'  {record["over_best_peer"]:5.2f}x {record["place"]}')
  if record['unsteady_turns']:
    verdict += f', {record["unsteady_turns"]} turns unsteady'
  return f'{record["label"]:58} {record["limit"]:6} {cells}{verdict}'


def parse_arguments():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--attnd', required=True, help='path of attnd_turns')
  parser.add_argument('--ggml', help='path of ggml_turns')
  parser.add_argument('--json', help='write the records to this file, one a line')
  parser.add_argument('--join', action='store_true',
                      help="keep records of --json's file of other cases")
  parser.add_argument('--filter', default='',
                      help='only cases whose printed name contains this')
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--seconds', type=float, default=0.03,
                      help='how long a turn lasts at least, default 0.03')
  options = parser.parse_args()
  if options.join and not options.json:
    parser.error('--join needs --json')
  return options


def main():
  options = parse_arguments()
  cases = [c for c in CASES if options.filter in label(c)]
  if not cases:
    sys.exit(f'no case has {options.filter!r} in its name')
  cpu = max(os.sched_getaffinity(0))
  python = [sys.executable, '-B']
  commands = {
      'attnd': [options.attnd],
      'PyTorch': [*python, HERE / 'pytorch_turns.py'],
      'ORT MHA': [*python, HERE / 'onnxruntime_turns.py',
                  'MultiHeadAttention'],
      'ORT Attn-23': [*python, HERE / 'onnxruntime_turns.py', 'Attention'],
      'OpenVINO': [*python, HERE / 'openvino_turns.py'],
  }
  if options.ggml:
    commands['ggml'] = [options.ggml]
  names = list(commands)
  records = []
  with contextlib.ExitStack() as stack:
    contestants = []
    for name, command in commands.items():
      contestants.append(Contestant(name, command, cpu))
      stack.callback(contestants[-1].close)
    machine = contestants[0].ask('machine')
    versions = {it.name: it.ask('version')['version']
                for it in contestants[1:]}
    pace = Pace(contestants[0])
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    print(json.dumps(machine))
    print('  '.join(f'{name} {v}' for name, v in versions.items()))
    print(f'{"":66} ' + ' '.join(f'{name:>12}' for name in names))
    for i, c in enumerate(cases):
      records.append(measure(c, contestants, pace, folder, options))
      print(f'{i + 1:2}/{len(cases):<2} {row(records[-1], names)}', flush=True)
    machine['stream'] = contestants[0].ask('machine')['stream']
    for stream in machine['stream']:
      print(f'stream bandwidth: {stream["gbytes_per_s"]:.1f} GB/s, '
            f'{stream["way"]}')
    too_fast = limits.excesses(records, pace.best_amx_rate > 0)

  if options.join and os.path.exists(options.json):
    old = run_file.read(options.json)['records']
    new = [r['label'] for r in records]
    records = [r for r in old if r['label'] not in new] + records
  if options.json:
    run_file.write(options.json, machine, versions, records)
  wrong = [f'{name}, {r["label"]}: {difference:.1e}' for r in records
           for name, difference in r['relative_rms_difference'].items()
           if not difference <= TOLERANCE[r['dtype']]]
  if wrong:
    sys.exit('answers that differ from attnd\'s:\n' + '\n'.join(wrong))
  if too_fast:
    sys.exit('shares above the limit, which was measured wrong:\n' +
             '\n'.join(too_fast))


if __name__ == '__main__':
  main()
