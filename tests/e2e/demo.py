"""./dev demo: computes attention of a real layer with a running server,
through attnctl and through Python with generated stubs, and compares it with
the expected output. Then it prints what this machine can do, and what a larger
problem would cost. It exits with 0 only if every answer agreed."""

import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np

from support import minilm, stubs
from support.client import Client
from support.server import Server, clean_environment, open_channel


class Demo:
  """Runs the steps with one server and keeps the verdicts."""

  def __init__(self, build, server):
    self._attnctl = build / 'client' / 'attnctl'
    self._build = build
    self._server = server
    self.disagreements = 0

  def title(self, text):
    print(f'\n{text}', flush=True)

  def _report(self, who, case, worst):
    agrees = worst <= case.bound
    self.disagreements += not agrees
    print(f'  {case.title:<8}{who:<22}worst error {worst:.2e}, allowed '
          f'{case.bound:.1e}: {"agrees" if agrees else "DISAGREES"}',
          flush=True)

  def run_attnctl(self, *arguments, accept=(0,)):
    """Runs attnctl with the server's unix socket. Returns its stdout."""
    # attnctl draws its progress bar only on a terminal. Otherwise, stderr has
    # only errors.
    shown = None if sys.stderr.isatty() else subprocess.PIPE
    done = subprocess.run(
        [str(self._attnctl), f'--server={self._server.unix}', *arguments],
        env=clean_environment(), stdout=subprocess.PIPE, stderr=shown,
        text=True, check=False)
    if done.returncode not in accept:
      raise RuntimeError(f'attnctl {arguments[0]} exited with '
                         f'{done.returncode}: {done.stderr or ""}')
    return done.stdout

  def attention_by_attnctl(self):
    for case in minilm.CASES:
      expected = '--expected' + ('-lse' if case.part == 'lse' else '')
      # Exit code 3 means that the answer is wrong. The JSON says by how much.
      answer = self.run_attnctl(
          'attention', f'--query={minilm.path("query")}',
          f'--key={minilm.path("key")}', f'--value={minilm.path("value")}',
          f'--causal={case.causal.replace("_", "-")}',
          f'{expected}={minilm.path(case.expected)}',
          f'--max-error={case.bound}', '--json', accept=(0, 3))
      (comparison,) = json.loads(answer)['comparisons']
      self._report('attnctl, unix socket', case, comparison['worst_error'])

  def attention_by_python(self):
    with open_channel(self._server.tcp) as channel:
      client = Client(stubs.load(self._build), channel)
      for case in minilm.CASES:
        response = client.attention(
            *minilm.inputs(), causal=case.causal,
            return_lse=case.part == 'lse')
        got = client.array(getattr(response, case.part))
        expected = minilm.load(case.expected)
        worst = (np.max(np.abs(got - expected)) if got.shape == expected.shape
                 else np.inf)
        # This is also false for NaN.
        self._report('Python, TCP', case,
                     float(np.nan_to_num(worst, nan=np.inf)))

  def show(self, *arguments):
    print('  ' + self.run_attnctl(*arguments).rstrip().replace('\n', '\n  '),
          flush=True)


def run(build):
  """Runs all steps. Returns how many answers were wrong."""
  with Server(build / 'server' / 'attnd') as server:
    print(f'attnd listens on {" and ".join(server.addresses)}')
    demo = Demo(build, server)
    demo.title('1. Attention of one layer of a transformer on the Gettysburg '
               'Address\n   (12 heads, 331 tokens), against float64:')
    demo.attention_by_attnctl()
    demo.attention_by_python()
    demo.title('2. attnctl bench: flash against naive attention, 4096 vectors '
               'of 128:')
    demo.show('bench', '--num-vectors=4096')
    demo.title('3. attnctl estimate: 32 heads over 8 kv heads, 8192 tokens:')
    demo.show('estimate', '--seq-len=8192', '--num-q-heads=32',
              '--num-kv-heads=8')
    demo.title('4. SIGTERM: the server drains and ends.')
    server.stop()
    print('  exit code 0')
  return demo.disagreements


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--build', type=pathlib.Path, required=True,
                      help='the build folder with server/ and client/')
  disagreements = run(parser.parse_args().build.resolve())
  print(f'\n{disagreements or "No"} answer{"s"[:disagreements != 1]} '
        'disagreed.')
  return 1 if disagreements else 0


if __name__ == '__main__':
  sys.exit(main())
