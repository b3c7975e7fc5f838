#!/usr/bin/env python3
"""Checks that the comparison with other systems fails if a share is too large.

usage: limits_test.py REPOSITORY
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(sys.argv[1]) / 'bench' / 'peers'))

import limits  # noqa: E402


def excesses(share, limit='stream', dtype='f32', has_amx=False):
  record = {'label': 'a case', 'limit': limit, 'dtype': dtype,
            'shares': {'attnd': 0.5, 'a peer': share}}
  return limits.excesses([record], has_amx)


def main():
  assert excesses(1.03) == []
  assert excesses(1.04) == ['a peer, a case: 1.04 of stream']
  # AMX and 16 bits do not help to read faster.
  assert len(excesses(1.04, dtype='bf16', has_amx=True)) == 1
  assert excesses(1.04, limit='peak') == ['a peer, a case: 1.04 of peak']
  assert excesses(1.04, limit='peak', has_amx=True) == []
  assert excesses(1.04, limit='peak', dtype='bf16') == []


if __name__ == '__main__':
  main()
