"""Plants faults in answers, and checks that ./dev chaos --mixed finds them."""

import pathlib
import re
import subprocess
import sys

import pytest

from attacks.callers import WRONG
from attacks.faults import ENVOY, TCP, Fault
from mixed import judge
from support.server import clean_environment

MIXED = pathlib.Path(__file__).with_name('mixed.py')


def failure(group, begin, end, outcome, details=''):
  return {'group': group, 'begin': begin, 'end': end, 'outcome': outcome,
          'details': details}


def test_a_wrong_bit_and_an_endless_call_are_found(build_dir):
  done = subprocess.run(
      [sys.executable, '-B', str(MIXED), f'--build={build_dir}',
       '--minutes=0.02', '--only=stopped', '--deadline=10',
       '--plant=wrong-bit', '--plant=endless-call'],
      env=clean_environment(), capture_output=True, text=True, timeout=600,
      check=False)
  print(done.stdout, done.stderr)
  assert done.returncode == 1
  broken = re.findall(r'^broken: (.*)', done.stdout, re.MULTILINE)
  assert '1 wrong answers' in broken
  # The connection of the endless call can swallow a second call, and on a slow
  # machine others can miss their deadline of a few seconds.
  assert any(re.fullmatch(r'\d+ lost calls', text) for text in broken)


@pytest.mark.parametrize('one,where', [
    (failure(ENVOY, 11, 12, 'UNAVAILABLE'), 1),
    (failure(ENVOY, 1, 10, 'UNAVAILABLE'), 1),
    (failure(ENVOY, 24, 25, 'UNAVAILABLE'), 1),  # a little later
    (failure(ENVOY, 1, 9, 'UNAVAILABLE'), 2),
    (failure(ENVOY, 26, 27, 'UNAVAILABLE'), 2),
    (failure(TCP, 11, 12, 'UNAVAILABLE'), 2),
    (failure(ENVOY, 11, 12, 'INTERNAL', 'Received RST_STREAM'), 1),
    (failure(ENVOY, 11, 12, 'INTERNAL', 'another reason'), 2),
    (failure(ENVOY, 11, 12, 'DEADLINE_EXCEEDED'), 2),
    (failure(ENVOY, 11, 12, 'no status'), 2),
    (failure(ENVOY, 11, 12, WRONG), 0)])
def test_calls_fail_only_by_a_fault_that_allows_it(one, where):
  fault = Fault('killed', None, 0, {ENVOY: 'UNAVAILABLE|INTERNAL.*RST_STREAM'})
  expected = [[], [], []]
  expected[where] = [one]
  assert list(judge([one], [(fault, 10, 20)])) == expected
