"""./dev chaos: attacks a real server and prints a verdict for each attack.

Each attack is bounded in what it sends and in time. Before and after an attack,
the server has to answer health on every listener, compute right answers, and
have all slots, its budget, descriptors and threads back. During the attack,
honest clients have to be served, and the resident memory has to stay within
what docs/configuration.md promises, plus a tenth. Exits with 0 only if the
server held against every attack that could run here.
"""

import argparse
import collections
import pathlib
import signal
import sys
import time

from attacks import (benchmarks, connections, logs, memory, messages,
                     processes, readers)
from attacks.harness import ATTACKS, Runner
from support import stubs

# Attacks on a broken server take long, so no attack begins after this time.
LIMIT_SECONDS, SHORT_LIMIT_SECONDS = 1500, 400
# The modules that add rows to the table.
TOPICS = (benchmarks, connections, logs, memory, messages, processes, readers)


def sanitized(build):
  """Returns whether the build uses a sanitizer."""
  cache = pathlib.Path(build, 'CMakeCache.txt').read_text(encoding='utf-8')
  return any(line.startswith('ATTND_SANITIZE:') and line.split('=', 1)[1]
             for line in cache.splitlines())


def chosen_from(options):
  names = options.only.split(',') if options.only else None
  unknown = set(names or ()) - {a.name for a in ATTACKS}
  if unknown:
    sys.exit(f'no such attack: {", ".join(sorted(unknown))}; see --list')
  chosen = [a for a in ATTACKS
            if (a.name in names if names else a.short or not options.short)]
  # Attacks that share a server are next to each other.
  return sorted(chosen, key=lambda a: (not a.server, a.prefix,
                                       str(a.settings)))


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--build', type=pathlib.Path, required=True)
  parser.add_argument('--short', action='store_true',
                      help='two minutes: smaller, and without the long ones')
  parser.add_argument('--only', metavar='NAME[,NAME...]')
  parser.add_argument('--seed', type=int, default=1)
  parser.add_argument('--list', action='store_true',
                      help='name the attacks and end')
  parser.add_argument('--log', action='store_true',
                      help="print the server's log where an attack broke it")
  options = parser.parse_args()
  if options.list:
    for one in ATTACKS:
      print(f'{one.name}{"" if one.short else " (not in --short)"}\n'
            f'    sends:    {one.sends}\n    judged by: {one.promise}')
    return
  options.sanitized = sanitized(options.build)
  print(f'seed {options.seed}' + ('; a sanitizer\'s build, so less is sent, '
        'times are multiplied and memory is not judged'
        if options.sanitized else ''), flush=True)
  # Raises an exception, so that finally clauses end the servers.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
  start = time.monotonic()
  limit = SHORT_LIMIT_SECONDS if options.short else LIMIT_SECONDS
  if options.sanitized:
    limit *= 3
  runner = Runner(options, stubs.load(options.build))
  verdicts = collections.Counter()
  try:
    for one in chosen_from(options):
      if time.monotonic() - start > limit:
        print(f'{one.name:28} BROKEN       not begun: {limit} s are over')
        verdicts['BROKEN'] += 1
      else:
        verdicts[runner.run(one)] += 1
  finally:
    runner.close()
  print(f'{verdicts["held"]} held, {verdicts["BROKEN"]} BROKEN, '
        f'{verdicts["not run here"]} not run here, '
        f'{time.monotonic() - start:.0f} s')
  sys.exit(bool(verdicts['BROKEN']))


if __name__ == '__main__':
  main()
