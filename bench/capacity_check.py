"""Compares the rate at which `attnctl estimate --rate` says that a server is
saturated with the rate that clients reach, and its p99 with what they see.

usage: capacity_check.py [--build=DIR] [--rounds=N] [--seconds=N] [--json=FILE]

Each round predicts and measures every mix of calls, one after the other, so
that a disturbance of the machine affects both. The table has medians of rounds.
The exit code is 1 if a prediction of a saturation rate differs by more than
20 % from what was measured.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

import server_process

BAR = 0.2
NO_LIMIT = ['--rate=0.001', '--p99-ms=1e9']
# The share of the saturation rate at which latencies are compared.
SHARE = 0.7

# name: q_heads, kv_heads, q_len, kv_len, head_dim, transport
CALLS = {
    'prefill': (32, 8, 2048, 2048, 128, 'inline'),
    'decode': (32, 8, 1, 16384, 128, 'inline'),
    'decode, shared memory': (32, 8, 1, 16384, 128, 'shared-memory'),
    'small': (4, 4, 64, 64, 64, 'inline'),
}

# name: how many calls of each kind are in a block of calls
MIXES = {
    'prefill': {'prefill': 1},
    'decode': {'decode': 1},
    'decode, shared memory': {'decode, shared memory': 1},
    'small': {'small': 1},
    'all but inline decode': {
        'prefill': 1, 'decode, shared memory': 100, 'small': 1000},
}


class Server(server_process.Server):
  """A server to which attnctl and clients can be pointed."""

  def __init__(self, build):
    super().__init__(build / 'server' / 'attnd')
    self._build = build

  def estimate(self, call, *flags):
    """Returns the JSON of attnctl estimate for a call."""
    q_heads, kv_heads, q_len, kv_len, head_dim, transport = CALLS[call]
    command = [
        self._build / 'client' / 'attnctl', 'estimate', '--json',
        f'--server={self.address}', f'--num-q-heads={q_heads}',
        f'--num-kv-heads={kv_heads}', f'--q-len={q_len}', f'--kv-len={kv_len}',
        f'--dimensions={head_dim}', f'--transport={transport}', *flags]
    if transport == 'shared-memory':
      command.append(f'--shm-socket={self.shm_socket}')
    return run(command)

  def load(self, calls, *flags):
    """Returns what the clients of call_load got."""
    return run([self._build / 'bench' / 'call_load', f'--server={self.address}',
                f'--shm-socket={self.shm_socket}', *flags,
                *(f'--call={count}:{":".join(map(str, CALLS[call]))}'
                  for call, count in calls.items())])


def run(command):
  """Returns the JSON that a command prints."""
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode != 0:
    raise RuntimeError(f'{command[0]}: {done.stderr}')
  return json.loads(done.stdout)


def predicted_rate(calls, rates):
  """Returns the calls per second of a mix. A server computes with all its
  processors, so the times of its calls add up."""
  return sum(calls.values()) / sum(
      count / rates[call] for call, count in calls.items())


def measure_rates(server, seconds):
  """Returns the predicted and the measured rate of every mix."""
  rates, result = {}, {}
  for mix, calls in MIXES.items():
    for call in calls:
      if call not in rates:
        rates[call] = server.estimate(call, *NO_LIMIT)['saturation_rate']
    measured = server.load(calls, f'--seconds={seconds}')['calls_per_second']
    result[mix] = (predicted_rate(calls, rates), measured)
  return result


def measure_latency(server, call, seconds):
  """Returns the predicted and the measured p99, in milliseconds."""
  saturation = server.estimate(call, *NO_LIMIT)['saturation_rate']
  rate = SHARE * saturation
  plan = server.estimate(call, f'--rate={rate}', '--p99-ms=1e9')
  if plan['pods'] != 1:  # the server was slower this time
    return None
  measured = server.load({call: 1}, f'--rate={rate}', f'--seconds={seconds}')
  return plan['p99_ms'], measured['p99_ms']


def processor():
  with open('/proc/cpuinfo', encoding='utf-8') as file:
    for line in file:
      if line.startswith('model name'):
        return line.split(':', 1)[1].strip()
  return 'unknown'


def row(name, pairs):
  """Returns the name, the median prediction, the median measurement, and the
  median ratio of prediction to measurement."""
  return (name, statistics.median(p for p, _ in pairs),
          statistics.median(m for _, m in pairs),
          statistics.median(p / m for p, m in pairs))


def print_table(title, rows):
  print(f'| {title} | predicted | measured | predicted / measured |')
  print('|---|---:|---:|---:|')
  for name, predicted, measured, ratio in rows:
    print(f'| {name} | {predicted:.4g} | {measured:.4g} | {ratio:.2f} |')


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--build', type=pathlib.Path,
                      default=pathlib.Path('build/release'))
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--seconds', type=float, default=5)
  parser.add_argument('--json', type=pathlib.Path)
  flags = parser.parse_args()
  rates = {mix: [] for mix in MIXES}
  latencies = {call: [] for call in ('small',)}
  with Server(flags.build) as server:
    for number in range(flags.rounds):
      print(f'round {number + 1} of {flags.rounds}', file=sys.stderr)
      for mix, pair in measure_rates(server, flags.seconds).items():
        rates[mix].append(pair)
      for call, pairs in latencies.items():
        pair = measure_latency(server, call, flags.seconds)
        if pair:
          pairs.append(pair)
  print(f'{processor()}, {flags.rounds} rounds\n')
  rows = [row(mix, pairs) for mix, pairs in rates.items()]
  print_table('calls per second at saturation', rows)
  print()
  print_table(f'p99 in ms, at {SHARE:.0%} of saturation',
              [row(call, pairs) for call, pairs in latencies.items() if pairs])
  if flags.json:
    flags.json.write_text(json.dumps(
        {'processor': processor(), 'rates': rates, 'p99_ms': latencies}),
        encoding='utf-8')
  missed = [name for name, _, _, ratio in rows if abs(ratio - 1) > BAR]
  for name in missed:
    print(f'misses the bar of {BAR:.0%}: {name}')
  return 1 if missed else 0


if __name__ == '__main__':
  sys.exit(main())
