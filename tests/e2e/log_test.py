"""Tests the log: the server does not wait for its reader, and clients cannot
write into it."""

import os
import re
import signal
import subprocess

import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from support import http2, work
from support.client import Client
from support.server import Server, clean_environment, open_channel, poll_until

SELF_ATTENTION = '/attnd.v1.AttentionService/SelfAttention'
# The beginning of every line of the log.
LINE = re.compile(rb'\[\d{4}-\d\d-\d\d [\d:.]+\] \[attnd\] '
                  rb'\[(debug|info|warning|error)\] [\x20-\x7e]+')
# gRPC repeats these values in its own log lines.
HOSTILE = ('x\n[2026-01-01 00:00:00.000] [attnd] [info] signal 15: stopping',
           'x\x1b[31m\x1b[2J\x07')


@pytest.fixture
def full_pipe():
  """Returns the end of a pipe that is full, because nobody reads it."""
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  with pytest.raises(BlockingIOError):
    while True:
      os.write(writer, b'x' * 4096)
  os.set_blocking(writer, True)
  yield writer
  os.close(writer)
  os.close(reader)


def serves(channel):
  answer = health_pb2_grpc.HealthStub(channel).Check(
      health_pb2.HealthCheckRequest(), timeout=60)
  return answer.status == health_pb2.HealthCheckResponse.SERVING


def whole_log(server):
  """Stops the server and returns everything that it wrote."""
  server.signal()
  assert server.wait() == 0
  return server.log_bytes()


def flood(server, values=HOSTILE):
  """Makes hundreds of calls, each of which makes gRPC write a message."""
  for value in values:
    with http2.Connection(server.tcp) as connection:
      connection.send_empty_calls(
          300, http2.request_headers(SELF_ATTENTION, {'grpc-encoding': value}))
      poll_until(lambda: connection.take_frames(1) or connection.reset, 60,
                 'an answer')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_full_pipe_stops_no_drain(attnd, full_pipe, number):
  with Server(attnd, stderr=full_pipe) as server:
    with open_channel(server.tcp) as channel:
      assert serves(channel)
    server.signal(number)
    assert server.wait(work.AT_ONCE_SECONDS) == 0


def test_a_full_pipe_stops_no_call(attnd, stubs, full_pipe):
  with Server(attnd, '--log-level=debug', '--max-in-flight=1',
              stderr=full_pipe) as server, \
      open_channel(server.tcp) as channel, \
      open_channel(server.tcp) as busy:
    client, own = Client(stubs, channel), Client(stubs, busy)
    for _ in range(20):
      assert work.refusal_of(client) is None
    flood(server)
    assert serves(channel)
    rows = work.rows_for(client, seconds=2)
    request = own.self_request(np.ones((1, rows, 1), np.float32))
    call = work.hold_slot(
        client, lambda: own.stub.SelfAttention.future(request))
    server.signal()
    assert np.allclose(own.array(call.result(timeout=600).output), 1)
    assert server.wait(work.AT_ONCE_SECONDS) == 0


def test_a_full_pipe_stops_no_error_at_start(attnd, full_pipe):
  done = subprocess.run(
      [str(attnd), '--listen=192.0.2.1:1', '--admin-listen='],
      stderr=full_pipe, check=False, timeout=work.AT_ONCE_SECONDS, env=clean_environment())
  assert done.returncode == 1


def test_clients_forge_no_lines(attnd):
  with Server(attnd) as server:
    flood(server)
    with open_channel(server.tcp) as channel:
      assert serves(channel)
    said = whole_log(server)
  lines = said.splitlines()
  for line in lines:
    assert LINE.fullmatch(line), line
  assert rb'x\x0a[2026-01-01' in said
  # There are fewer lines than the 600 calls of the flood.
  assert len(lines) < 300


def test_escapes_of_terminals_are_written_out(attnd):
  with Server(attnd) as server:
    flood(server, HOSTILE[1:])
    said = whole_log(server)
  assert rb'x\x1b[31m\x1b[2J\x07' in said
  assert b'\x1b' not in said


def test_a_closed_stderr_is_not_taken_for_another_file(attnd, tmp_path):
  addresses = tmp_path / 'addresses'
  process = subprocess.Popen(
      ['/bin/sh', '-c', 'exec "$0" "$@" 2>&-', str(attnd),
       '--listen=127.0.0.1:0', '--admin-listen=',
       f'--address-file={addresses}'],
      env=clean_environment())
  try:
    poll_until(addresses.exists, 60, 'the server')
    assert os.readlink(f'/proc/{process.pid}/fd/2') == '/dev/null'
  finally:
    process.terminate()
    assert process.wait(work.AT_ONCE_SECONDS) == 0
