"""Reads and writes what a bench measured (bench/records.h has the format)."""

import json

LISTS = {'record': 'records', 'verdict': 'verdicts'}


def read(path):
  """Returns {'machine': {...}, 'records': [...], 'verdicts': [...], ...}."""
  run = {'records': [], 'verdicts': []}
  with open(path, encoding='utf-8') as file:
    for line in file:
      (kind, value), = json.loads(line).items()
      if kind in LISTS:
        run[LISTS[kind]].append(value)
      else:
        run[kind] = value
  return run


def write(path, machine, versions, records):
  """Writes a contest of peers, whose `versions` are by their names."""
  lines = [{'machine': machine}, {'versions': versions},
           *({'record': record} for record in records)]
  with open(path, 'w', encoding='utf-8') as file:
    for line in lines:
      file.write(json.dumps(line, separators=(',', ':')) + '\n')
