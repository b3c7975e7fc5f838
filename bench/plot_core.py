"""Draws the results of core_bench from its records.

    python bench/plot_core.py core.jsonl docs/performance

It creates scaling.svg (time, memory and share of peak as N grows) and
roofline.svg in that folder. Needs matplotlib.
"""

import pathlib
import sys

import matplotlib
import run_file

matplotlib.use('svg')
import matplotlib.pyplot as plt  # noqa: E402

# What the picture of the roofline shows: labels, colours, and the records for
# each.
FAMILIES = (
    ('prefill', '#1e6bb3', lambda r: r['name'] == 'scaling'),
    ('prefill, causal', '#7fb3e0', lambda r: r['name'] == 'prefill_causal'
     and r['q_len'] >= 1024),
    ('short, odd', '#2f9e62', lambda r: r['name'] in ('short', 'odd')),
    ('backward', '#8250b4', lambda r: r['name'] == 'backward'),
    ('decode f32', '#d08a00', lambda r: r['name'].startswith('decode')
     and r['dtype'] == 'f32'),
    ('decode 16 bit', '#e8c170', lambda r: r['name'].startswith('decode')
     and r['dtype'] != 'f32'),
    ('naive', '#b3541e', lambda r: r['name'] == 'naive'),
)


def save(figure, path):
  figure.tight_layout()
  figure.savefig(path, metadata={'Date': None})
  print(f'drew {path}', file=sys.stderr)


def chosen(records, name, threads, **where):
  found = [r for r in records if r['name'] == name
           and r['threads'] == threads
           and all(r[key] == value for key, value in where.items())]
  return sorted(found, key=lambda r: r['q_len'])


def draw_scaling(records, threads, path):
  flash = chosen(records, 'over_naive', threads)
  naive = chosen(records, 'naive', threads)
  figure, axes = plt.subplots(1, 3, figsize=(12.5, 3.4))
  for axis, key, scale, label in (
      (axes[0], 'time_ms', 1, 'time (ms)'),
      (axes[1], 'held_bytes', 2**-20, 'memory held (MiB)')):
    for those, name, colour, marker in (
        (naive, 'naive, N x N scores', '#b3541e', 's'),
        (flash, 'attnd', '#1e6bb3', 'o')):
      axis.plot([r['q_len'] for r in those], [r[key] * scale for r in those],
                color=colour, marker=marker, markersize=4, label=name)
    axis.set(yscale='log', ylabel=label)
    axis.set_title(f'1 head, head_dim 128, {threads} threads', fontsize=9)
  for head_dim, colour in ((64, '#2f9e62'), (128, '#1e6bb3')):
    those = chosen(records, 'scaling', 1, head_dim=head_dim)
    axes[2].plot([r['q_len'] for r in those],
                 [r['peak_ratio'] for r in those], color=colour, marker='o',
                 markersize=4, label=f'attnd, head_dim {head_dim}')
  axes[2].plot([r['q_len'] for r in chosen(records, 'naive', 1)],
               [r['peak_ratio'] for r in chosen(records, 'naive', 1)],
               color='#b3541e', marker='s', markersize=4, label='naive')
  axes[2].set_ylim(bottom=0)
  axes[2].set_ylabel('share of FMA peak')
  axes[2].set_title('1 head, 1 thread', fontsize=9)
  for axis in axes:
    axis.set(xscale='log', xlabel='N (queries = keys)')
    lengths = sorted({int(x) for line in axis.lines for x in line.get_xdata()})
    axis.set_xticks(lengths, [str(n) for n in lengths], fontsize=7)
    axis.minorticks_off()
    axis.grid(True, alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
  save(figure, path)


def draw_roofline(records, path):
  one = [r for r in records if r['threads'] == 1]
  peak = sorted(r['peak_gflops'] for r in one)[len(one) // 2]
  stream = sorted(r['stream_gbytes_per_s'] for r in one)[len(one) // 2]
  figure, axis = plt.subplots(figsize=(7, 4.4))
  ends = (0.25, 20000)
  ridge = peak / stream
  axis.plot((ends[0], ridge, ends[1]), (ends[0] * stream, peak, peak),
            color='black', linewidth=1.2)
  axis.text(ends[1], peak * 1.05, f'FMA peak {peak:.0f} GFLOP/s', ha='right',
            fontsize=8)
  axis.text(1.1, 1.1 * stream * 1.15, f'stream {stream:.1f} GB/s', fontsize=8,
            rotation=53, rotation_mode='anchor')
  for label, colour, belongs in FAMILIES:
    those = [r for r in one if belongs(r)]
    axis.scatter([r['gflops'] / r['gbytes_per_s'] for r in those],
                 [r['gflops'] for r in those], s=18, color=colour, label=label)
  axis.set(xscale='log', yscale='log', xlim=ends, ylim=(3, peak * 1.5),
           xlabel='operations a byte of inputs and outputs',
           ylabel='GFLOP/s, one thread')
  axis.grid(True, alpha=0.3)
  axis.legend(frameon=False, fontsize=8, loc='lower right')
  save(figure, path)


def main(source, folder):
  records = run_file.read(source)['records']
  missing = {'over_naive', 'naive', 'scaling'} - {r['name'] for r in records}
  if missing:
    sys.exit(f'{source}: no records {sorted(missing)}; draws whole runs only')
  threads = max(r['threads'] for r in records)
  plt.rcParams.update({'font.size': 9, 'svg.hashsalt': 'attnd',
                       'svg.fonttype': 'none'})
  draw_scaling(records, threads, pathlib.Path(folder, 'scaling.svg'))
  draw_roofline(records, pathlib.Path(folder, 'roofline.svg'))


if __name__ == '__main__':
  if len(sys.argv) != 3:
    sys.exit(__doc__)
  main(*sys.argv[1:])
