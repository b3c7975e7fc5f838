"""Measures what a server under too much load still does in time, and how it shares
itself among clients.

usage: goodput.py [overload|fairness]... [--build=DIR] [--attnd=FILE] [--seconds=N]
                  [--seed=N] [--threads=N] [--small-every=N] [--large-every=N]
                  [--json=FILE] [--label=before|now]

The server computes with one thread by default, so that the clients have the other
processor of a machine with two. All tensors are in shared memory, so that transport
takes little time.

overload: Calls arrive at random (a Poisson process with --seed) at 1.2, 2 and 5
times the capacity, whatever becomes of earlier calls. Their deadlines are four
times the time that they take alone. They have equal sizes, or nine sizes from 0.1
to 10. Goodput is the work of the calls that were answered in time, as a share of
what the server can do while calls arrive. It can exceed 1 in short runs, because the
last calls are computed after that. Beside it is the most that any scheduler reaches
for the same arrivals, and what one reaches that divides its time equally among all
calls (bench/goodput_model.py explains both).

fairness: client A keeps 250 large calls in flight, over one connection and over
eight, while client B makes small calls and a few large ones. Also: small calls
beside one huge call of the same client, and how long the server is busy after a
call was cancelled.

Each bar has a line HELD or MISSED. The exit code is 1 if a bar is missed. Other
programs on the machine make the results worse: a worker that has no processor for
20 ms makes all calls late that wait then. `nice` does not help against programs of
other sessions where Linux groups them by session (kernel.sched_autogroup_enabled).
`chrt --rr 1` does, if the server and the clients both run with it.
"""

import argparse
import collections
import json
import os
import pathlib
import statistics
import subprocess
import sys

import goodput_model
import server_process

LOADS = (1.2, 2, 5)
SLACK = 4  # the deadline of a call, in times of its work
Q_LEN, KV_LEN = 256, 8192  # of a call of size 1
SIZES = {'equal': [1], 'mixed': [10**(-1 + i / 4) for i in range(9)]}
SMALL = (64, 64)  # query and key rows of a small call
HUGE_KV_LEN = 64 * KV_LEN
NO_DEADLINE_US = 600_000_000
QUANTUM_MS = 0.5
A_CALLS = 250
CANCEL_ROUNDS = 100
WARM_CALLS = 8


def processor_seconds(server):
  """Returns how long the threads of a server have run on a processor."""
  tasks = pathlib.Path(f'/proc/{server.pid}/task')
  return sum(int((task / 'schedstat').read_text().split()[0])
             for task in tasks.iterdir()) / 1e9


def kv_len(size):
  return max(64, round(KV_LEN * size / 64) * 64)


class Bench:
  """Runs clients beside a server, and collects records and verdicts."""

  def __init__(self, flags):
    self._flags = flags
    self.records, self.verdicts = [], []

  def server(self):
    return server_process.Server(self._flags.attnd,
                                 f'--threads={self._flags.threads}')

  def start(self, server, address, *flags):
    return subprocess.Popen(
        [self._flags.build / 'bench' / 'call_player', f'--server={address}',
         f'--shm-socket={server.shm_socket}', *flags],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

  def keep(self, server, calls, *flags):
    """Starts a client that keeps calls in flight until it is finished, and
    waits until the server has them all."""
    player = self.start(server, server.tcp_address, f'--keep={calls}',
                        '--seconds=0', f'--q-len={Q_LEN}', *flags)
    if not player.stdout.readline():
      raise RuntimeError('call_player failed')
    return player

  def finish(self, player, calls=()):
    """Gives a player its calls: (at_us, q_len, kv_len, deadline_us). Returns
    what it prints."""
    output, _ = player.communicate(
        ''.join(f'{" ".join(map(str, call))}\n' for call in calls))
    if player.returncode:
      raise RuntimeError('call_player failed')
    return [json.loads(line) for line in output.splitlines()]

  def play(self, server, address, calls, *flags):
    return self.finish(self.start(server, address, *flags), calls)

  def record(self, name, **values):
    self.records.append({'name': name, **values})

  def verdict(self, bar, measured, *, at_least=None, at_most=None):
    meets = ((at_least is None or measured >= at_least) and
             (at_most is None or measured <= at_most))
    limits = {key: limit for key, limit in
              (('at_least', at_least), ('at_most', at_most))
              if limit is not None}
    self.verdicts.append({'bar': bar, 'measured': measured, **limits,
                          'meets': meets})
    words = {'at_least': 'at least', 'at_most': 'at most'}
    text = ', '.join(f'{words[k]} {v:.4g}' for k, v in limits.items())
    print(f'{"HELD" if meets else "MISSED"}: {bar}: {measured:.4g} ({text})',
          flush=True)


def percentile(values, fraction):
  """Returns the value below which `fraction` of `values` lie, or 0."""
  ordered = sorted(values)
  return ordered[max(0, -int(-fraction * len(ordered) // 1) - 1)] if ordered else 0


def took_ms(line):
  return (line['ended_us'] - line['sent_us']) / 1000


def capacity(bench, server, size):
  """Returns how many microseconds a call of a size takes, when two are in
  flight, so that the server never waits."""
  seconds = max(1, 0.2 * size)
  lines = bench.finish(bench.start(
      server, server.tcp_address, '--keep=2', f'--seconds={seconds}',
      f'--q-len={Q_LEN}', f'--kv-len={kv_len(size)}'))
  ends = sorted(line['ended_us'] for line in lines)
  return round(ends[-1] / len(ends))


def sort_out(calls, lines):
  """Returns how many calls had each result, and the latencies of refusals."""
  counts = collections.Counter()
  refusal_ms = []
  in_time_us = 0
  for line in lines:
    call = calls[line['call']]
    if line['status'] == 'OK':
      if not line['right']:
        counts['wrong'] += 1
      elif line['ended_us'] <= call.deadline:
        counts['in_time'] += 1
        in_time_us += call.work
      else:
        counts['late'] += 1
    elif line['status'] == 'RESOURCE_EXHAUSTED':
      counts[f'refused {line["reason"]}'] += 1
      refusal_ms.append(took_ms(line))
    elif line['status'] == 'DEADLINE_EXCEEDED':
      counts['expired'] += 1
    else:
      counts['lost'] += 1
  counts['lost'] += len(calls) - len(lines)
  return counts, in_time_us, refusal_ms


def overload(bench, flags):
  for sizes_name, sizes in SIZES.items():
    for load in LOADS:
      with bench.server() as server:
        # A server that writes to fresh memory takes longer, up to twice as long
        # on some virtual machines. These calls take as much as the largest run.
        bench.finish(bench.start(
            server, server.tcp_address, f'--keep={WARM_CALLS}', '--seconds=1',
            f'--q-len={Q_LEN}', f'--kv-len={kv_len(max(sizes))}'))
        works = [capacity(bench, server, size) for size in sizes]
        # Warm-up is over: calls of these sizes have run.
        calls = goodput_model.arrivals(flags.seed, flags.seconds, load, works,
                                       SLACK)
        had = processor_seconds(server)
        lines = bench.play(
            server, server.tcp_address,
            [(call.at, Q_LEN, kv_len(sizes[call.size]), call.deadline - call.at)
             for call in calls], '--connections=4')
        # Others on the machine may have slowed it down meanwhile.
        had = (processor_seconds(server) - had) / flags.seconds
        after = [capacity(bench, server, size) for size in sizes]
      drift = sum(after) / sum(works)
      counts, in_time_us, refusal_ms = sort_out(calls, lines)
      length_us = flags.seconds * 1e6
      share = in_time_us / length_us
      best = goodput_model.best_reachable(calls) / length_us
      shared = goodput_model.shared_processor(calls) / length_us
      refused = {key.removeprefix('refused '): n for key, n in counts.items()
                 if key.startswith('refused ')}
      admitted = len(calls) - sum(refused.values())
      missed = (counts['late'] + counts['expired']) / max(1, admitted)
      p50, p99 = (percentile(refusal_ms, f) for f in (0.5, 0.99))
      bench.record(
          'overload', sizes=sizes_name, load=load, seconds=flags.seconds,
          seed=flags.seed, sent=len(calls), in_time=counts['in_time'],
          late=counts['late'], expired=counts['expired'], refused=refused,
          lost=counts['lost'], wrong=counts['wrong'], refusal_p50_ms=p50,
          refusal_p99_ms=p99, missed_share=missed, goodput=share, best=best,
          shared_processor=shared, service_us=works, drift=drift,
          processors_had=had)
      print(f'\n{sizes_name} sizes, {load} times the capacity, seed '
            f'{flags.seed}: sent {len(calls)}, in time {counts["in_time"]}, '
            f'late {counts["late"]}, expired {counts["expired"]}, refused '
            f'{refused or 0}, lost {counts["lost"]}, wrong {counts["wrong"]}\n'
            f'goodput {share:.3f} of capacity; best reachable {best:.3f}; '
            f'equal shares {shared:.3f}; refusals p50 {p50:.2f} ms, p99 '
            f'{p99:.2f} ms; calls take {drift:.2f} times as long afterwards; '
            f'the server had {had:.2f} processors')
      case = f'{sizes_name}, {load}x'
      bench.verdict(f'{case}: goodput / best reachable', share / best,
                    at_least=0.9)
      bench.verdict(f'{case}: admitted calls that miss their deadline', missed,
                    at_most=0.01)
      if refusal_ms:
        bench.verdict(f'{case}: refusals, p99 in ms', p99, at_most=10)
      bench.verdict(f'{case}: lost or wrong',
                    counts['lost'] + counts['wrong'], at_most=0)


def calls_of_b(seconds, small_every, large_every):
  """Returns B's calls: small ones, and large ones between them."""
  calls = []
  for i in range(int(seconds / small_every)):
    calls.append((round(i * small_every * 1e6), *SMALL, NO_DEADLINE_US))
  for i in range(int(seconds / large_every)):
    calls.append((round((i + 0.53) * large_every * 1e6), Q_LEN, KV_LEN,
                  NO_DEADLINE_US))
  return sorted(calls)


def p99_of_b(bench, server, calls):
  """Lets B make its calls. Returns the p99 of small and of large ones and the
  median compute time of large ones, all in ms, and how many had no answer."""
  lines = bench.play(server, server.address, calls)
  of = {True: [], False: []}
  computes, failed = [], collections.Counter()
  for line in lines:
    large = calls[line['call']][1] == Q_LEN
    if line['status'] != 'OK':
      failed[line['reason'] or line['status']] += 1
    elif not line['right']:
      failed['wrong'] += 1
    else:
      of[large].append(took_ms(line))
      if large:
        computes.append(line['compute_us'] / 1000)
  return (percentile(of[False], 0.99), percentile(of[True], 0.99),
          statistics.median(computes) if computes else 0, dict(failed))


def beside_250(bench, flags):
  calls = calls_of_b(flags.seconds, flags.small_every, flags.large_every)
  for connections in (1, 8):
    with bench.server() as server:
      p99_of_b(bench, server, calls[:20])  # warm-up
      small_alone, large_alone, compute, _ = p99_of_b(bench, server, calls)
      a = bench.keep(server, A_CALLS, f'--connections={connections}',
                     f'--kv-len={KV_LEN}')
      small, large, _, failed = p99_of_b(bench, server, calls)
      lines_of_a = bench.finish(a)
    refused_of_a = sum(line['status'] != 'OK' for line in lines_of_a)
    bench.record('beside_250', connections=connections, seconds=flags.seconds,
                 small_alone_p99_ms=small_alone, small_p99_ms=small,
                 large_alone_p99_ms=large_alone, large_p99_ms=large,
                 large_compute_ms=compute, failed_of_b=failed,
                 calls_of_a=len(lines_of_a), refused_of_a=refused_of_a)
    print(f'\nB beside {A_CALLS} calls of A over {connections} connections: '
          f'small p99 {small:.2f} ms (alone {small_alone:.2f}), large p99 '
          f'{large:.1f} ms (alone {large_alone:.1f}), no answer {failed or 0}; '
          f'of {len(lines_of_a)} calls of A, {refused_of_a} were refused')
    case = f'B beside A, {connections} connections'
    bench.verdict(f'{case}: calls of B without an answer',
                  sum(failed.values()), at_most=0)
    bench.verdict(f'{case}: small p99 in ms', small,
                  at_most=small_alone + QUANTUM_MS)
    bench.verdict(f'{case}: large p99 in ms', large,
                  at_most=large_alone + QUANTUM_MS + compute / 2)


def beside_huge(bench, flags):
  calls = [(i * 20_000, *SMALL, NO_DEADLINE_US)
           for i in range(int(flags.seconds * 50))]
  with bench.server() as server:
    def p99():
      lines = bench.play(server, server.tcp_address, calls)
      if any(line['status'] != 'OK' or not line['right'] for line in lines):
        raise RuntimeError('a small call failed')
      return percentile([took_ms(line) for line in lines], 0.99)
    p99()  # warm-up
    idle = p99()
    huge = bench.keep(server, 1, f'--kv-len={HUGE_KV_LEN}')
    beside = p99()
    bench.finish(huge)
  bench.record('beside_huge', seconds=flags.seconds, idle_p99_ms=idle,
               beside_p99_ms=beside)
  bench.verdict('small calls beside a huge one: p99 / p99 when idle',
                beside / idle, at_most=2)


def after_cancel(bench):
  with bench.server() as server:
    lines = bench.finish(bench.start(
        server, server.tcp_address, f'--cancel-rounds={CANCEL_ROUNDS}',
        f'--q-len={Q_LEN}', f'--kv-len={HUGE_KV_LEN}'))
  idle_ms = [line['idle_us'] / 1000 for line in lines]
  p50, p99 = (percentile(idle_ms, f) for f in (0.5, 0.99))
  bench.record('after_cancel', rounds=CANCEL_ROUNDS, p50_ms=p50, p99_ms=p99)
  bench.verdict('from cancel to idle: p99 in ms', p99, at_most=20)


def processor():
  with open('/proc/cpuinfo', encoding='utf-8') as file:
    for line in file:
      if line.startswith('model name'):
        return line.split(':', 1)[1].strip()
  return 'unknown'


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('parts', nargs='*', metavar='overload|fairness',
                      default=['overload', 'fairness'])
  parser.add_argument('--build', type=pathlib.Path,
                      default=pathlib.Path('build/release'))
  parser.add_argument('--attnd', type=pathlib.Path,
                      help='the server (default: that of --build)')
  parser.add_argument('--seconds', type=float, default=20,
                      help='how long each run takes (default: %(default)s; '
                      'whole runs take 300)')
  parser.add_argument('--small-every', type=float, default=0.1,
                      help='seconds between small calls of B '
                      '(default: %(default)s)')
  parser.add_argument('--large-every', type=float, default=1,
                      help='seconds between large calls of B '
                      '(default: %(default)s)')
  parser.add_argument('--seed', type=int, default=1)
  parser.add_argument('--threads', type=int, default=1)
  parser.add_argument('--json', type=pathlib.Path)
  parser.add_argument('--label', choices=['before', 'now'], default='now',
                      help='which tables the records are for')
  flags = parser.parse_args()
  if unknown := set(flags.parts) - {'overload', 'fairness'}:
    parser.error(f'expected overload or fairness, got {unknown.pop()}')
  flags.attnd = flags.attnd or flags.build / 'server' / 'attnd'
  machine = {'label': flags.label, 'processor': processor(), 'processors': os.cpu_count(),
             'threads': flags.threads,
             'busy_before': os.getloadavg()[0]}
  bench = Bench(flags)
  if 'overload' in flags.parts:
    overload(bench, flags)
  if 'fairness' in flags.parts:
    beside_250(bench, flags)
    beside_huge(bench, flags)
    after_cancel(bench)
  if flags.json:
    lines = [{'machine': machine},
             *({'record': record} for record in bench.records),
             *({'verdict': verdict} for verdict in bench.verdicts)]
    flags.json.write_text(''.join(
        json.dumps(line, separators=(',', ':')) + '\n' for line in lines),
        encoding='utf-8')
  return 0 if all(verdict['meets'] for verdict in bench.verdicts) else 1


if __name__ == '__main__':
  sys.exit(main())
