"""Writes tables into documents, from records of ./dev bench core, peers, serve,
pytorch-server or goodput.

usage: tables.py RECORDS.jsonl DOCUMENT.md...

A table is the lines directly below a line <!-- bench: NAME -->. This program
replaces those lines and leaves all other text as it is. RECORDS.jsonl has the
records of a whole run, or records that were joined to those of a whole run.
"""
import re
import sys

import run_file


def table(head, rows, align):
  lines = [head, align, *rows]
  return [f'| {" | ".join(cells)} |' if isinstance(cells, (list, tuple))
          else cells for cells in lines]


def times(threads):
  return f'{threads} thread{"s" if threads > 1 else ""}'


def of(records, name, **fields):
  return [r for r in records if r['name'] == name and
          all(r[k] == v for k, v in fields.items())]


def star(record):
  """Returns a star if the machine was at its usual speed in too few rounds."""
  return '' if record['steady'] else '*'


def share(record, key, digits=2):
  return f'{record[key]:.{digits}f}{star(record)}'


def ratio(records, key='peak_ratio'):
  return [share(r, key) for r in records]


def over_naive(data):
  threads = max(r['threads'] for r in data['records'])
  pairs = zip(of(data['records'], 'over_naive', threads=threads),
              of(data['records'], 'naive', threads=threads))
  rows = [[f'{f["q_len"]}', f'{n["time_ms"]:.1f} ms', f'{f["time_ms"]:.1f} ms',
           f'{f["speedup"]:.1f}x{star(f)}', f'{n["held_bytes"] / 2**20:.1f} MiB',
           f'{f["held_bytes"] / 2**20:.1f} MiB']
          for f, n in pairs if f['q_len'] >= 512]
  return table(['N', 'naive', 'attnd', 'faster', 'memory naive',
                'memory attnd'], rows, '|---:|---:|---:|---:|---:|---:|')


def over_naive_by_threads(data):
  records = data['records']
  lengths = [r['q_len'] for r in of(records, 'over_naive', threads=1)]
  rows = []
  for threads in sorted({r['threads'] for r in of(records, 'over_naive')}):
    flash = of(records, 'over_naive', threads=threads)
    naive = of(records, 'naive', threads=threads)
    rows.append([f'{times(threads)}, times faster',
                 *(share(r, 'speedup', 1) for r in flash)])
    rows.append(['naive, GFLOP/s', *(f'{r["gflops"]:.0f}' for r in naive)])
  return table(['N', *map(str, lengths)], rows,
               '|---|' + '---:|' * len(lengths))


def bar_and_verdict(v):
  limits = [f'>= {v["at_least"]:.2f}'] if 'at_least' in v else []
  limits += [f'<= {v["at_most"]:.2f}'] if 'at_most' in v else []
  return ' '.join(limits), 'meets' if v['meets'] else 'misses'


def bars(data):
  rows = [[v['bar'], share(v, 'measured', 3), *bar_and_verdict(v)]
          for v in data['verdicts']]
  return ['| bar | measured | limit | verdict |',
          *table('', rows, '|---|---:|---|---|')[1:]]


def prefill(data):
  records = data['records']
  lengths = [r['q_len'] for r in of(records, 'prefill', threads=1,
                                    head_dim=64)]
  rows = []
  for threads in sorted({r['threads'] for r in of(records, 'prefill')}):
    for name, note in (('prefill', ''), ('prefill_causal', 'causal, ')):
      for head_dim in (64, 128):
        those = of(records, name, threads=threads, head_dim=head_dim)
        rows.append([f'{note}{times(threads)}, head_dim {head_dim}',
                     *ratio(those)])
  return table(['N', *map(str, lengths)], rows,
               '|---|' + '---:|' * len(lengths))


def by_threads(head, records, label, key):
  """One row for each case, one column for each number of threads."""
  cells = {}
  for r in records:
    cells.setdefault(label(r), []).append(share(r, key))
  threads = sorted({r['threads'] for r in records})
  return table([head, *map(times, threads)],
               [[name, *values] for name, values in cells.items()],
               '|---|' + '---:|' * len(threads))


def other_shapes(data):
  return by_threads(
      'other shapes, share of FMA peak',
      of(data['records'], 'short') + of(data['records'], 'odd'),
      lambda r: f'{r["q_heads"]} heads, N = {r["q_len"]}, '
                f'head_dim {r["head_dim"]}', 'peak_ratio')


def decode(data):
  def label(r):
    heads = (f'{r["q_heads"]} heads' if r['q_heads'] == r['kv_heads'] else
             f'{r["q_heads"]} query heads, {r["kv_heads"]} kv heads')
    return f'{heads}, {r["dtype"]}'
  return by_threads(
      '1 query over 32 Ki keys, head_dim 128, share of stream',
      of(data['records'], 'decode') + of(data['records'], 'decode_gqa'), label,
      'stream_ratio')


def one_thread(data):
  records = [r for r in data['records'] if r['threads'] == 1]
  def sixteen(dtype, key):
    return ' and '.join(ratio(of(records, '16_bit', dtype=dtype), key))
  def masked(window):
    those = [r for r in of(records, 'masked', causal=True)
             if (r['window'] > 0) == window]
    cost = share(those[0], 'cost')
    return f'{cost} times the full call\'s cost per visible key'
  def backward(causal):
    return ', '.join(ratio(of(records, 'backward', causal=causal)))
  def reach(key):
    those = [r[key] for r in of(records, 'auto', q_len=16)
             if 'block_size' not in r]
    return f'{min(those):.2f} to {max(those):.2f}'
  rows = [
      ['bf16 inputs, N = 4096, head_dim 64 and 128',
       f'{sixteen("bf16", "peak_ratio")} of the f32 peak'],
      ['f16 inputs, N = 4096, head_dim 64 and 128',
       f'{sixteen("f16", "relative")} times the speed of f32'],
      ['causal, N = 4096, head_dim 128', masked(False)],
      ['causal, window of 1024 keys, N = 4096, head_dim 128', masked(True)],
      ['backward, one head, N = 2048, head_dim 64, 96 and 128 (5 products '
       'counted)', f'{backward(False)} of peak; causal {backward(True)}'],
      ['16 query rows of 8 heads over 16 Ki keys, head_dim 32 to 256',
       f'{reach("peak_ratio")} of peak, {reach("stream_ratio")} of stream']]
  return table(['one thread', 'result'], rows, '|---|---|')


def peers(data):
  names = list(data['records'][0]['shares'])
  rows = []
  for r in data['records']:
    best = max(r['shares'].values())
    shares = []
    for name in names:
      value = r['shares'].get(name)
      text = '-' if value is None else f'{value:.2f}'
      shares.append(f'**{text}**' if value == best else text)
    unsteady = '*' if r['unsteady_turns'] else ''
    rows.append([r['label'], r['limit'], *shares,
                 f'{r["over_best_peer"]:.2f}{unsteady}, {r["place"]}'])
  return table(['case', 'of', *names, 'attnd / best other'], rows,
               '|---|---|' + '---:|' * len(names) + '---|')


def duration(us):
  return f'{us:.0f} us' if us < 9999.5 else f'{us / 1000:.0f} ms'


def serving_shape(r):
  if r['q_len'] == r['kv_len']:
    length = f'N = {r["q_len"]}'
  else:
    length = f'{r["q_len"]} over {r["kv_len"]}'
  heads = f'{r["q_heads"]} head{"s" if r["q_heads"] > 1 else ""}'
  return f'{heads}, {length}, head_dim {r["head_dim"]}'


def one_client(data):
  return [r for r in data['records'] if r['clients'] == 1 and
          r['name'] == r['case']]


def serving_calls(data):
  rows = [[f'{r["name"]} ({serving_shape(r)})', r['transport'],
           duration(r['p50_us']), duration(r['p99_us']),
           duration(r['core_p50_us']), f'{r["overhead_ratio"]:.2f}']
          for r in one_client(data)]
  return table(['call, one client', 'transport', 'p50', 'p99', 'core p50',
                'ratio'], rows, '|---|---|---:|---:|---:|---:|')


def serving_rates(data):
  def rate(case, name, transport):
    for r in of(data['records'], name, case=case, transport=transport):
      if r['clients'] == 1 and r.get('payload_gbytes_per_s'):
        return f'{r["payload_gbytes_per_s"]:.2f}'
    return '-'
  rows = []
  for r in one_client(data):
    cells = [rate(r['case'], name, r['transport']) for name in
             (r['case'], 'grpc_echo', 'grpc_echo_protobuf', 'socket_copy')]
    if cells[0] != '-':
      rows.append([r['case'], r['transport'], *cells])
  return table(['GB/s', 'transport', 'attnd', 'gRPC echo, raw',
                'gRPC echo, protobuf', 'plain sockets'], rows,
               '|---|---|---:|---:|---:|---:|')


def call_rate(per_second):
  return f'{per_second:.0f}' if per_second >= 99.95 else f'{per_second:.1f}'


def pytorch_server_row(r, four):
  """Returns the cells for one caller `r` and for `four` callers. `four` is the record
  of the same case, client and transport."""
  faster = r['pytorch_p50_us'] / r['attnd_p50_us']
  rate = four['attnd_rps'] / four['pytorch_rps']
  return [duration(r['attnd_p50_us']), duration(r['pytorch_p50_us']),
          f'**{faster:.2f}x**', call_rate(four['attnd_rps']),
          call_rate(four['pytorch_rps']), f'**{rate:.2f}x**']


def pytorch_server_pairs(data):
  """Yields the records of each case for one caller and for four callers."""
  for r in data['records']:
    if r['clients'] == 1:
      key = ('case', 'client', 'transport')
      yield r, next(f for f in data['records'] if f['clients'] == 4 and
                    all(f[k] == r[k] for k in key))


def pytorch_server_case(r):
  return serving_shape(r) + (', causal' if r['causal'] else '')


def processors(data):
  machine = data['machine']
  return f'{machine["cpu"]} ({machine["isa"]}), {times(machine["threads"])}'


PYTORCH_SERVER_ALIGN = '---:|' * 6


def pytorch_server(data):
  limits = {(v['case'], v['transport']): bar_and_verdict(v)
            for v in data['verdicts']}
  rows = []
  for r, four in pytorch_server_pairs(data):
    limit = '-'
    if r['client'] == 'C++':
      limit = ', '.join(limits[r['case'], r['transport']])
    rows.append([pytorch_server_case(r), f'{r["client"]}, {r["transport"]}',
                 *pytorch_server_row(r, four), limit])
  return table([processors(data), 'client', 'p50, attnd', 'PyTorch server',
                'faster', 'calls/s of four, attnd', 'PyTorch server', 'faster',
                'limit of p50'], rows,
               '|---|---|' + PYTORCH_SERVER_ALIGN + '---|')


def pytorch_server_short(data):
  rows = [[pytorch_server_case(r), *pytorch_server_row(r, four)]
          for r, four in pytorch_server_pairs(data)
          if (r['client'], r['transport']) == ('C++', 'tcp')]
  return table([processors(data), 'p50, attnd', 'PyTorch server', 'faster',
                'calls/s of four, attnd', 'PyTorch server', 'faster'], rows,
               '|---|' + PYTORCH_SERVER_ALIGN)


def serving_bars(data):
  rows = [[v['bar'], v['transport'], f'{v["measured"]:.2f}',
           *bar_and_verdict(v)] for v in data['verdicts']]
  return ['| bar | transport | measured | limit | verdict |',
          *table('', rows, '|---|---|---:|---|---|')[1:]]


SERVING_TABLES = {'serving_calls': serving_calls,
                  'serving_rates': serving_rates,
                  'serving_bars': serving_bars}


def goodput(data):
  rows = []
  for r in of(data['records'], 'overload'):
    refused = ', '.join(f'{n} {reason}' for reason, n in
                        sorted(r['refused'].items())) or '0'
    latency = (f'{r["refusal_p50_ms"]:.1f} / {r["refusal_p99_ms"]:.1f} ms'
               if r['refused'] else '-')
    rows.append([r['sizes'], f'{r["load"]}x', *(str(r[key]) for key in (
        'sent', 'in_time', 'late', 'expired')), refused, latency,
                 f'{r["lost"]} / {r["wrong"]}', f'**{r["goodput"]:.2f}**',
                 f'{r["best"]:.2f}', f'{r["shared_processor"]:.2f}'])
  return table(['sizes', 'load', 'sent', 'in time', 'late', 'expired',
                'refused', 'refusals p50 / p99', 'lost / wrong', 'goodput',
                'best reachable', 'equal shares'], rows,
               '|---|---|' + '---:|' * 4 + '---|' + '---:|' * 5)


def goodput_bars(data):
  rows = [[v['bar'], f'{v["measured"]:.3g}', *bar_and_verdict(v)]
          for v in data['verdicts']]
  return table(['bar', 'measured', 'limit', 'verdict'], rows,
               '|---|---:|---|---|')


TABLES = {'over_naive': over_naive, 'bars': bars, 'prefill': prefill,
          'other_shapes': other_shapes, 'decode': decode,
          'one_thread': one_thread,
          'over_naive_by_threads': over_naive_by_threads}


def main(source, documents):
  data = run_file.read(source)
  if 'versions' in data:
    tables = {'peers': peers}
  elif 'pytorch' in data['machine']:
    tables = {'pytorch_server': pytorch_server,
              'pytorch_server_short': pytorch_server_short}
  elif 'label' in data['machine']:  # which state of the server it is
    suffix = data['machine']['label']
    tables = {f'goodput_{suffix}': goodput,
              f'goodput_bars_{suffix}': goodput_bars}
  else:
    tables = SERVING_TABLES if 'case' in data['records'][0] else TABLES
  for document in documents:
    with open(document, encoding='utf-8') as file:
      text = file.read()
    for name, make in tables.items():
      marker = f'<!-- bench: {name} -->\n'
      lines = ''.join(line + '\n' for line in make(data))
      text = re.sub(re.escape(marker) + r'(\|.*\n)*',
                    lambda _: marker + lines, text)
    with open(document, 'w', encoding='utf-8') as file:
      file.write(text)


if __name__ == '__main__':
  if len(sys.argv) < 3:
    sys.exit(__doc__)
  main(sys.argv[1], sys.argv[2:])
