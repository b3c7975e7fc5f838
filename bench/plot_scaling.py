"""Draws time and memory as N grows, flash beside naive, from the records that
core_bench wrote: python bench/plot_scaling.py core.json scaling.svg [THREADS].
Prints the README's table. Needs matplotlib.
"""

import json
import sys

import matplotlib

matplotlib.use('svg')
import matplotlib.pyplot as plt  # noqa: E402


def series(records, name, threads):
  chosen = [r for r in records
            if r['name'] == name and r['threads'] == threads]
  return sorted(chosen, key=lambda r: r['q_len'])


def main(source, target, threads):
  with open(source, encoding='utf-8') as file:
    data = json.load(file)
  flash = series(data['records'], 'over_naive', threads)
  naive = series(data['records'], 'naive', threads)
  if not flash or len(flash) != len(naive):
    sys.exit(f'{source}: no over_naive and naive records of {threads} threads')

  plt.rcParams.update({'font.size': 10, 'svg.hashsalt': 'attnd',
                       'svg.fonttype': 'none'})
  figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
  lengths = [r['q_len'] for r in flash]
  for axis, key, scale, label in (
      (axes[0], 'time_ms', 1, 'time (ms)'),
      (axes[1], 'held_bytes', 2**-20, 'memory held (MiB)')):
    for records, name, colour, marker in (
        (naive, 'naive, N x N scores', '#b3541e', 's'),
        (flash, 'attnd', '#1e6bb3', 'o')):
      axis.plot(lengths, [r[key] * scale for r in records], color=colour,
                marker=marker, markersize=4, label=name)
    axis.set(xscale='log', yscale='log', xlabel='N (queries = keys)',
             ylabel=label)
    axis.set_xticks(lengths, [str(n) for n in lengths])
    axis.minorticks_off()
    axis.grid(True, alpha=0.3)
    axis.legend(frameon=False)
  figure.suptitle(f'1 head, head_dim 128, f32, {threads} threads, '
                  f'{flash[0]["isa"]}', fontsize=10)
  figure.tight_layout()
  figure.savefig(target, metadata={'Date': None})

  print('| N | naive | attnd | faster | memory naive | memory attnd | less |')
  print('|---:|---:|---:|---:|---:|---:|---:|')
  for f, n in zip(flash, naive):
    less = 1 - f['held_bytes'] / n['held_bytes']
    print(f'| {f["q_len"]} | {n["time_ms"]:.2f} ms | {f["time_ms"]:.2f} ms '
          f'| {f["speedup"]:.1f}x | {n["held_bytes"] / 2**20:.1f} MiB '
          f'| {f["held_bytes"] / 2**20:.1f} MiB | {100 * less:.0f} % |')


if __name__ == '__main__':
  if len(sys.argv) not in (3, 4):
    sys.exit(__doc__)
  main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) == 4 else 2)
