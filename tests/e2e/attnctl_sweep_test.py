"""Tests the sweeps of attnctl, and its search for the largest problem, with a
real server."""

import csv
import io
import json
import signal
import subprocess
import xml.etree.ElementTree

import pytest

from support.server import Server, clean_environment

OK, CALL_FAILED = 0, 1
SVG = '{http://www.w3.org/2000/svg}'


@pytest.fixture
def attnctl(build_dir, server):
  binary = build_dir / 'client' / 'attnctl'

  def run(command, *flags):
    """Runs attnctl and returns the finished process."""
    return subprocess.run(
        [str(binary), command, f'--server={server.tcp}', *flags],
        env=clean_environment(), capture_output=True, text=True, timeout=300,
        check=False)

  return run


def rows_of(text):
  return list(csv.DictReader(io.StringIO(text, newline='')))


def points_of(path):
  """Returns the tooltips of the points of an SVG file."""
  root = xml.etree.ElementTree.parse(path).getroot()
  assert root.tag == f'{SVG}svg'
  assert root.find(f'{SVG}title').text and root.find(f'{SVG}desc').text
  return [title.text for title in root.iterfind(f'.//{SVG}path/{SVG}title')]


def test_a_sweep_of_benchmarks(attnctl, tmp_path):
  svg = tmp_path / 'bench.svg'
  run = attnctl('bench', '--sweep=num-vectors=64..256', '--dimensions=32',
                '--repetitions=2', '--csv', f'--svg={svg}')
  assert run.returncode == OK, run.stderr
  rows = rows_of(run.stdout)
  assert [row['num_vectors'] for row in rows] == ['64', '128', '256']
  for row in rows:
    assert row['dimensions'] == '32' and row['repetitions'] == '2'
    assert float(row['speedup']) == pytest.approx(
        float(row['naive_time_ms']) / float(row['flash_time_ms']))
    n = int(row['num_vectors'])
    assert int(row['naive_peak_bytes']) >= 4 * n * n
  assert 'num_vectors = 256 (3 of 3)' in run.stderr
  # Two charts with two series of three points.
  assert len(points_of(svg)) == 12


def test_a_sweep_goes_on_where_naive_attention_does_not_fit(
    attnd, build_dir):
  with Server(attnd, '--memory-budget-bytes=16000000') as server:
    run = subprocess.run(
        [str(build_dir / 'client' / 'attnctl'), 'bench',
         f'--server={server.tcp}', '--sweep=num-vectors=1024..4096',
         '--dimensions=16', '--repetitions=1'],
        env=clean_environment(), capture_output=True, text=True, timeout=300,
        check=False)
  assert run.returncode == OK, run.stderr
  table = [line.split() for line in run.stdout.splitlines()[:4]]
  assert [line[0] for line in table] == ['num_vectors', '1024', '2048', '4096']
  assert run.stdout.count('does not fit') == 2
  assert 'Time of one run\n' in run.stdout
  assert 'Most memory held\n' in run.stdout


def test_an_interrupted_sweep_prints_what_it_measured(attnd, build_dir):
  """The second benchmark takes hours if nothing stops it."""
  with Server(attnd, '--max-benchmark-seconds=0',
              '--max-benchmark-vectors=1048576') as server:
    process = subprocess.Popen(
        [str(build_dir / 'client' / 'attnctl'), 'bench',
         f'--server={server.tcp}', '--sweep=num-vectors=64..300000+299936',
         '--repetitions=1', '--json'],
        env=clean_environment(), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True)
    said = []
    try:
      for line in process.stderr:
        said.append(line)
        if '(2 of 2)' in line:
          process.send_signal(signal.SIGINT)
          break
      out, rest = process.communicate(timeout=300)
    finally:
      process.kill()
  assert process.returncode == CALL_FAILED, (said, rest)
  assert [row['num_vectors'] for row in json.loads(out)] == [64]
  assert ('the sweep ended at num_vectors = 300000, after 1 of 2 benchmarks, '
          'because it was interrupted') in rest


def test_a_sweep_of_estimates(attnctl, tmp_path):
  svg = tmp_path / 'memory.svg'
  flags = ('--sweep=seq-len=1024..1048576', '--num-q-heads=32',
           '--num-kv-heads=8', '--threads=2', f'--svg={svg}')
  served = attnctl('estimate', *flags, '--csv')
  offline = attnctl('estimate', *flags, '--csv', '--offline')
  assert served.returncode == OK and offline.returncode == OK, served.stderr
  assert served.stdout.startswith('seq_len,naive_bytes,flash_bytes,')
  served_rows, offline_rows = rows_of(served.stdout), rows_of(offline.stdout)
  assert [int(row['seq_len']) for row in served_rows] == [
      1 << k for k in range(10, 21)]
  for of_server, row in zip(served_rows, offline_rows):
    assert {key: of_server[key] for key in row} == row
    assert of_server['fits'] in ('true', 'false')
  one = attnctl('estimate', '--seq-len=4096', *flags[1:4], '--json')
  assert json.loads(one.stdout)['peak_bytes'] == int(
      served_rows[2]['peak_bytes'])
  points = points_of(svg)
  assert len(points) == 2 * 11
  assert points[-1] == 'naive, 1Mi: 128 TiB'
  table = attnctl('estimate', *flags)
  assert '* flash   o naive' in table.stdout
  assert len(table.stdout.splitlines()) == 12 + 1 + 21


@pytest.mark.parametrize('flags', [
    ('--max=seq-len',), ('--max=seq-len', '--q-len=1'),
    ('--max=batch', '--seq-len=512'),
    ('--max=concurrency', '--seq-len=512', '--transport=stream')])
def test_the_largest_problem_fits_and_the_next_does_not(attnctl, flags):
  how = [flag for flag in flags if not flag.startswith('--max')] + [
      '--offline', '--threads=2', '--json']
  name = flags[0].removeprefix('--max=')
  found = json.loads(
      attnctl('estimate', flags[0], '--budget=256MiB', *how).stdout)
  largest = found[f'max_{name.replace("-", "_")}']

  def peak(size):
    answer = attnctl('estimate', f'--{name}={size}', *how)
    assert answer.returncode == OK, answer.stderr
    return json.loads(answer.stdout)['peak_bytes']

  assert peak(largest) == found['peak_bytes'] <= 256 << 20
  assert peak(largest + 1) > 256 << 20
