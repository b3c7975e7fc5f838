"""Draws latency against throughput, from the open-loop records of serve_bench.

    python bench/plot_serving.py serving.jsonl serving.svg

Needs matplotlib.
"""

import sys

import matplotlib
import run_file

matplotlib.use('svg')
import matplotlib.pyplot as plt  # noqa: E402

COLOURS = {'tcp': '#b3541e', 'unix': '#1e6bb3'}


def shape(r):
  lengths = (f'N = {r["q_len"]}' if r['q_len'] == r['kv_len'] else
             f'{r["q_len"]} over {r["kv_len"]}')
  return (f'{r["q_heads"]} head{"s" if r["q_heads"] > 1 else ""}, {lengths}, '
          f'head_dim {r["head_dim"]}')


def draw(records, target):
  cases = list(dict.fromkeys(r['case'] for r in records))
  plt.rcParams.update({'font.size': 10, 'svg.hashsalt': 'attnd',
                       'svg.fonttype': 'none'})
  figure, axes = plt.subplots(1, len(cases), figsize=(4 * len(cases), 3.6),
                              squeeze=False)
  for axis, case in zip(axes[0], cases):
    for transport, colour in COLOURS.items():
      chosen = sorted((r for r in records if r['case'] == case and
                       r['transport'] == transport and r['p50_us']),
                      key=lambda r: r['offered_rps'])
      for key, style, marker in (('p50_us', '-', 'o'), ('p99_us', '--', 's')):
        axis.plot([r['offered_rps'] for r in chosen],
                  [r[key] / 1e3 for r in chosen], style, color=colour,
                  marker=marker, markersize=4,
                  label=f'{transport} {key.removesuffix("_us")}')
    axis.set(yscale='log', xlabel='offered calls a second',
             ylabel='latency (ms)')
    axis.set_title(shape(next(r for r in records if r['case'] == case)),
                   fontsize=10)
    axis.set_xlim(left=0)
    axis.grid(True, alpha=0.3)
  axes[0][0].legend(frameon=False, fontsize=8)
  figure.suptitle('Latency from the scheduled time, Poisson arrivals',
                  fontsize=10)
  figure.tight_layout()
  figure.savefig(target, metadata={'Date': None})


def main(source, target):
  open_loops = [r for r in run_file.read(source)['records']
                if r['name'] == 'open_loop']
  if not open_loops:
    sys.exit(f'{source}: no open_loop records')
  draw(open_loops, target)


if __name__ == '__main__':
  if len(sys.argv) != 3:
    sys.exit(__doc__)
  main(*sys.argv[1:])
