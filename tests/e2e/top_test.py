"""Tests attnctl top on a pseudo-terminal and in pipes, with real servers under
load."""

import contextlib
import fcntl
import json
import os
import pathlib
import pty
import select
import signal
import struct
import subprocess
import termios
import threading

import grpc
import numpy as np
import pytest

from support import work
from support.server import STOP_SECONDS, Server, clean_environment, poll_until

SHOW_SCREEN = b'\x1b[?1049h\x1b[?25l'  # the alternate screen, without cursor
HIDE_SCREEN = b'\x1b[?25h\x1b[?1049l'
WAIT_SECONDS = 60


class Top:
  """A context manager: attnctl top on a pseudo-terminal of its own."""

  def __init__(self, build_dir, address, *flags, interval=0.1,
               size=(24, 80)):
    self._command = [str(build_dir / 'client' / 'attnctl'), 'top',
                     f'--server={address}', f'--interval={interval}', *flags]
    self._size = size
    self.output = b''

  def __enter__(self):
    self.terminal, self._child = pty.openpty()
    self.resize(*self._size)
    self.modes = termios.tcgetattr(self._child)
    self.process = subprocess.Popen(
        self._command, stdin=self._child, stdout=self._child,
        stderr=self._child, start_new_session=True,
        env=clean_environment({'TERM': 'xterm', 'TZ': 'UTC'}),
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
    return self

  def __exit__(self, *_):
    if self.process.poll() is None:
      self.process.kill()
      self.process.wait()
    os.close(self.terminal)
    os.close(self._child)

  def resize(self, rows, columns):
    fcntl.ioctl(self.terminal, termios.TIOCSWINSZ,
                struct.pack('HHHH', rows, columns, 0, 0))

  def keys(self, text):
    os.write(self.terminal, text)

  def read(self):
    """Returns all output so far."""
    while select.select([self.terminal], [], [], 0)[0]:
      self.output += os.read(self.terminal, 65536)
    return self.output

  def frame(self):
    """Returns the lines that were last drawn on the whole screen."""
    drawn = self.read().rpartition(b'\x1b[J')[0].rpartition(b'\x1b[H')[2]
    return [line.rstrip('\r').removesuffix('\x1b[K')
            for line in drawn.decode('ascii').split('\n')]

  def wait_for(self, condition, what):
    """Waits for a frame for which condition(frame) is true. Returns it."""

    def matches():
      assert self.process.poll() is None, self.read()
      frame = self.frame()
      return frame if condition(frame) else None

    try:
      return poll_until(matches, WAIT_SECONDS, what)
    except TimeoutError as error:
      error.add_note('\n'.join(self.frame()))
      raise

  def wait_for_text(self, text):
    return self.wait_for(lambda frame: any(text in line for line in frame),
                         text)

  def restored(self):
    """Returns whether the terminal is as it was before."""
    return (self.read().endswith(HIDE_SCREEN)
            and termios.tcgetattr(self._child) == self.modes)

  def state(self):
    """Returns the state of the process as /proc shows it, such as 'T'."""
    stat = pathlib.Path(f'/proc/{self.process.pid}/stat').read_text()
    return stat.rpartition(')')[2].split()[0]


class Load:
  """A context manager: threads that make calls and count how they ended."""

  def __init__(self, connect, address, threads=3):
    self._clients = [connect(address) for _ in range(threads)]
    self._lock = threading.Lock()
    self._stop = threading.Event()
    self.finished = 0
    self.failed = 0

  def __enter__(self):
    self._threads = [threading.Thread(target=self._run, args=(client,))
                     for client in self._clients]
    for thread in self._threads:
      thread.start()
    return self

  def __exit__(self, *_):
    self.stop()

  def stop(self):
    self._stop.set()
    for thread in self._threads:
      thread.join()

  def _run(self, client):
    good = client.self_request(np.ones((2, 128, 32), np.float32))
    bad = client.self_request(np.ones((2, 128, 32), np.float32))
    bad.sequence.shape[0] = 3
    while not self._stop.is_set():
      for request, code in ((good, None), (good, None),
                            (bad, grpc.StatusCode.INVALID_ARGUMENT)):
        try:
          client.stub.SelfAttention(request, timeout=WAIT_SECONDS)
        except grpc.RpcError as error:
          if error.code() == grpc.StatusCode.UNAVAILABLE:
            return  # the test has killed the server
          assert error.code() == code, error
        else:
          assert code is None
        with self._lock:
          self.finished += 1
          self.failed += code is not None


@pytest.fixture
def top(build_dir):
  with contextlib.ExitStack() as stack:
    yield lambda *arguments, **how: stack.enter_context(
        Top(build_dir, *arguments, **how))


@pytest.fixture
def once(build_dir):
  """once(address, *flags) returns what attnctl top --once --json prints."""

  def run(address, *flags):
    process = subprocess.run(
        [str(build_dir / 'client' / 'attnctl'), 'top', '--once', '--json',
         f'--server={address}', *flags],
        env=clean_environment(), capture_output=True, text=True, check=False,
        timeout=WAIT_SECONDS)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)

  return run


@pytest.fixture
def fresh(attnd):
  """A server that has had no calls."""
  with Server(attnd) as running:
    yield running


def of_method(entries, method):
  return next(entry for entry in entries if entry['method'] == method)


def test_counts_are_those_of_the_clients(fresh, connect, once):
  with Load(connect, fresh.tcp) as load:
    at_least = poll_until(lambda: load.finished, WAIT_SECONDS, 'a call')
    during = once(fresh.unix, '--interval=0.5')
    load.stop()
  after = once(fresh.unix, '--interval=0.1')

  counted = of_method(during['load']['methods'], 'SelfAttention')
  assert at_least <= counted['finished'] <= load.finished
  rates = of_method(during['rates']['methods'], 'SelfAttention')
  # The first of the two samples was taken after `at_least` calls.
  calls = rates['finished_per_second'] * during['rates']['seconds']
  assert abs(calls - round(calls)) < 1e-6
  assert 0 < round(calls) <= counted['finished'] - at_least
  assert rates['mean_compute_time_ms'] > 0
  assert rates['mean_total_time_ms'] > 0
  assert rates['gflops'] > 0
  assert not during['rates']['restarted'] and not during['rates']['since_start']
  assert during['health'] == 'SERVING'
  assert during['server'] == fresh.unix

  counted = of_method(after['load']['methods'], 'SelfAttention')
  assert counted['finished'] == load.finished
  assert counted['failed'] == load.failed
  rates = of_method(after['rates']['methods'], 'SelfAttention')
  assert rates['finished_per_second'] == 0
  assert rates['mean_queue_time_ms'] is None
  assert after['load']['in_flight'] == 0


def test_draws_80_by_24_under_load(fresh, connect, top):
  screen = top(fresh.tcp)
  with Load(connect, fresh.tcp) as load:
    frame = screen.wait_for_text('over the last ')
    busy = screen.wait_for(
        lambda lines: any(line.startswith('SelfAttention')
                          and line.split()[1] != '0' for line in lines),
        'a rate of SelfAttention')
    load.stop()
  for lines in (frame, busy):
    assert len(lines) == 24
    assert all(len(line) <= 80 for line in lines), lines
    assert lines[0].startswith('attnd ') and f'at {fresh.tcp} ' in lines[0]
    assert lines[1].startswith('SERVING, up 00:')
    assert [line.split()[0] for line in lines[3:7]] == [
        'threads', 'slots', 'memory', 'connections']
    assert lines[23] == 'A sample every 0.1 s. q or Ctrl-C quits.'
  # The last column has the total.
  screen.wait_for(
      lambda lines: any(line.startswith('SelfAttention')
                        and line.endswith(f' {load.finished}')
                        for line in lines), f'{load.finished} calls')
  assert SHOW_SCREEN in screen.output


@pytest.mark.parametrize('end', ['Ctrl-C', 'q', 'SIGTERM', 'SIGHUP'])
def test_restores_the_terminal(server, top, end):
  screen = top(server.tcp)
  screen.wait_for_text('SERVING')
  assert not screen.restored()
  if end == 'Ctrl-C':
    screen.keys(b'\x03')
  elif end == 'q':
    screen.keys(b'\x1b[Axq')  # an arrow and x have no effect
  else:
    screen.process.send_signal(getattr(signal, end))
  assert screen.process.wait(STOP_SECONDS) == 0
  assert screen.restored()


def test_suspends_and_continues(server, top):
  screen = top(server.tcp)
  screen.wait_for_text('SERVING')
  screen.keys(b'\x1a')
  poll_until(lambda: screen.state() == 'T', WAIT_SECONDS, 'a stopped process')
  assert screen.restored()
  screen.output = b''
  screen.process.send_signal(signal.SIGCONT)
  screen.wait_for_text('SERVING')
  assert screen.output.startswith(SHOW_SCREEN)
  screen.keys(b'q')
  assert screen.process.wait(STOP_SECONDS) == 0
  assert screen.restored()


def test_follows_the_size_of_the_terminal(server, top):
  screen = top(server.tcp, interval=86400)
  screen.wait_for_text('SERVING')
  for rows, columns in ((10, 60), (1, 20), (50, 200), (24, 80)):
    screen.resize(rows, columns)
    frame = screen.wait_for(lambda lines: len(lines) == rows, f'{rows} rows')
    assert all(len(line) <= columns for line in frame), frame
    assert frame[-1].startswith('A sample every 8'), frame


def test_waits_for_a_server_that_restarts(attnd, connect, top):
  with Server(attnd) as server:
    with Load(connect, server.tcp, threads=1) as load:
      poll_until(lambda: load.finished, WAIT_SECONDS, 'a call')
      load.stop()
    screen = top(server.unix)
    screen.wait_for_text('over the last')
    server.kill()
    frame = screen.wait_for_text('NOT REACHABLE since ')
    assert 'UNAVAILABLE: ' in frame[1], frame
    assert frame[2].startswith('The numbers below are those of '), frame
    server.start()
    frame = screen.wait_for_text('SERVING, ')
    assert 'REACHABLE' not in '\n'.join(frame)
    assert any(line.startswith('SelfAttention') and line.endswith(' 0')
               for line in frame), frame
    screen.wait_for_text('over the last')
    assert b'since the server restarted' in screen.output
    screen.keys(b'q')
    assert screen.process.wait(STOP_SECONDS) == 0


def test_starts_before_its_server(attnd, top):
  with Server(attnd) as server:
    server.stop()
    screen = top(server.unix)
    frame = screen.wait_for_text('NOT REACHABLE since ')
    assert frame[0] == f'attnd at {server.unix}'[:80]
    server.start()
    screen.wait_for_text('over the last')


def test_says_by_its_exit_code_that_no_server_answered(tmp_path, top):
  screen = top(f'unix:{tmp_path}/nobody')
  screen.wait_for_text('NOT REACHABLE since ')
  screen.keys(b'q')
  assert screen.process.wait(STOP_SECONDS) == 4


def test_says_that_a_server_drains(attnd, connect, top):
  with Server(attnd) as server:
    screen = top(server.tcp)
    screen.wait_for_text('SERVING, ')
    client = connect(server.tcp)
    call = client.stub.SelfAttention.future(work.endless_request(client))
    screen.wait_for(lambda lines: ' 1 of ' in lines[4], 'a call in its slot')
    server.signal()
    frame = screen.wait_for_text('NOT_SERVING, no answer since ')
    assert 'UNAVAILABLE: the server is draining' in frame[1], frame
    call.cancel()
    server.wait()
    screen.wait_for_text('NOT REACHABLE since ')


def test_watches_a_server_whose_slots_are_all_in_use(attnd, connect, top):
  with Server(attnd, '--max-in-flight=1') as server:
    screen = top(server.tcp)
    client = connect(server.tcp)
    call = client.stub.SelfAttention.future(work.endless_request(client))
    frame = screen.wait_for_text(' 1 of 1 ')
    assert frame[1].startswith('SERVING, up '), frame
    count = len(screen.output)
    screen.wait_for(lambda _: len(screen.output) > 3 * count, 'more frames')
    assert b'no answer' not in screen.output
    call.cancel()
    screen.wait_for_text(' 0 of 1 ')


# The terminal must be restored at once, although a call waits for its answer.
def test_quits_while_the_server_hangs(attnd, top):
  with Server(attnd) as server:
    screen = top(server.tcp, '--deadline=0')
    screen.wait_for_text('SERVING')
    server.signal(signal.SIGSTOP)
    try:
      screen.keys(b'q')
      poll_until(screen.restored, WAIT_SECONDS, 'a restored terminal')
      if screen.process.poll() is None:  # it waits for the answer
        screen.keys(b'\x03')
      assert screen.process.wait(STOP_SECONDS) in (0, -signal.SIGINT)
    finally:
      server.signal(signal.SIGCONT)


def lines_of(build_dir, address, *flags, **how):
  return subprocess.Popen(
      [str(build_dir / 'client' / 'attnctl'), 'top', '--json',
       f'--server={address}', '--interval=0.1', *flags],
      env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      text=True, **how)


def test_prints_a_line_of_json_for_each_sample(attnd, build_dir, connect):
  with Server(attnd) as server:
    with lines_of(build_dir, server.unix) as top, \
        Load(connect, server.tcp, threads=1):
      samples = [json.loads(top.stdout.readline()) for _ in range(5)]
      server.kill()
      while 'error' not in samples[-1]:
        samples.append(json.loads(top.stdout.readline()))
      assert samples[-1]['error']['code'] == 'UNAVAILABLE'
      assert samples[-1]['no_answer_since'].endswith('Z')
      assert 'load' not in samples[-1]
      top.send_signal(signal.SIGINT)
      rest, errors = top.communicate(timeout=STOP_SECONDS)
    assert (top.returncode, errors) == (0, '')
    for line in rest.splitlines():
      assert json.loads(line)['error']
    assert samples[0]['rates']['since_start']
    for before, after in zip(samples[:4], samples[1:5]):
      assert not after['rates']['restarted']
      calls = [of_method(sample['load']['methods'], 'SelfAttention')['finished']
               for sample in (before, after)]
      rate = of_method(after['rates']['methods'], 'SelfAttention')
      np.testing.assert_allclose(
          rate['finished_per_second'] * after['rates']['seconds'],
          calls[1] - calls[0], atol=1e-6)
    server.start()


def test_ends_when_nobody_reads(server, build_dir):
  with lines_of(build_dir, server.unix) as top:
    top.stdout.readline()
    top.stdout.close()
    assert top.wait(STOP_SECONDS) == 5
    assert top.stderr.read() == (
        'attnctl: standard output: cannot write: Broken pipe\n')


def test_ignores_what_nohup_ignores(server, build_dir):
  with lines_of(build_dir, server.unix, preexec_fn=lambda: signal.signal(
      signal.SIGHUP, signal.SIG_IGN)) as top:
    top.stdout.readline()
    top.send_signal(signal.SIGHUP)
    for _ in range(3):
      json.loads(top.stdout.readline())
    top.terminate()
    top.communicate(timeout=STOP_SECONDS)
  assert top.returncode == 0
