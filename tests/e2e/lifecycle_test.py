"""Tests start, health, reflection, drain and end of the server process."""

import os
import signal
import subprocess
import threading
import time

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from support import work
from support.client import Client, Refusal
from support.server import Server, clean_environment, open_channel, poll_until

SERVICE = 'attnd.v1.AttentionService'
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def health(channel):
  return health_pb2_grpc.HealthStub(channel)


@pytest.mark.parametrize('service', ['', SERVICE])
def test_health_check(client, service):
  answer = health(client.channel).Check(
      health_pb2.HealthCheckRequest(service=service))
  assert answer.status == SERVING


def test_health_of_an_unknown_service(client, refused):
  refusal = refused(lambda: health(client.channel).Check(
      health_pb2.HealthCheckRequest(service='no.such.Service')))
  assert refusal.code == grpc.StatusCode.NOT_FOUND


def test_reflection_lists_the_service(client):
  stub = reflection_pb2_grpc.ServerReflectionStub(client.channel)
  (answer,) = stub.ServerReflectionInfo(iter([
      reflection_pb2.ServerReflectionRequest(list_services='')]))
  names = {s.name for s in answer.list_services_response.service}
  assert {SERVICE, 'grpc.health.v1.Health'} <= names


def test_address_file_names_both_addresses(server):
  tcp, unix = server.addresses
  host, port = tcp.rsplit(':', 1)
  assert host == '127.0.0.1' and int(port) > 0
  assert unix == f'unix:{server.socket_path}'


@pytest.mark.parametrize('number',
                         [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_drains(attnd, stubs, number):
  with Server(attnd, '--max-in-flight=1') as server, \
      open_channel(server.tcp) as channel, \
      open_channel(server.tcp) as busy:
    client, own = Client(stubs, channel), Client(stubs, busy)
    rows = work.rows_for(client, seconds=4)
    watches = [
        health(channel).Watch(health_pb2.HealthCheckRequest(service=name))
        for name in ('', SERVICE)
    ]
    assert [next(w).status for w in watches] == [SERVING, SERVING]
    request = own.self_request(np.ones((1, rows, 1), np.float32))
    call = work.hold_slot(
        client, lambda: own.stub.SelfAttention.future(request))

    server.signal(number)

    assert [next(w).status for w in watches] == [NOT_SERVING, NOT_SERVING]
    # The server refuses new work with a reason, or by closing the connection.
    refusal = work.refusal_of(client)
    assert refusal.code == grpc.StatusCode.UNAVAILABLE, refusal
    output = own.array(call.result(timeout=600).output)
    assert np.allclose(output, 1)
    assert server.wait() == 0


def test_a_second_signal_is_quick(attnd, stubs):
  with Server(attnd, '--max-in-flight=1') as server, \
      open_channel(server.tcp) as channel, \
      open_channel(server.tcp) as busy:
    client, own = Client(stubs, channel), Client(stubs, busy)
    watch = health(channel).Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == SERVING
    call = work.hold_slot(client, lambda: own.stub.SelfAttention.future(
        work.endless_request(own)))
    server.signal()
    assert next(watch).status == NOT_SERVING
    server.signal(signal.SIGINT)
    start = time.monotonic()
    server.wait(work.AT_ONCE_SECONDS)
    assert time.monotonic() - start < work.AT_ONCE_SECONDS
    assert call.code() in (grpc.StatusCode.CANCELLED,
                           grpc.StatusCode.UNAVAILABLE)
    server.forget()


def signal_twice_at_once(server, channel):
  """Sends SIGTERM, and again when the server has read the first one. Returns
  whether this took less than 0.1 s, as it does unless the machine is busy."""
  watch = health(channel).Watch(health_pb2.HealthCheckRequest())
  assert next(watch).status == SERVING
  start = time.monotonic()
  server.signal()
  assert next(watch).status == NOT_SERVING
  server.signal()
  return time.monotonic() - start < 0.1


def test_the_same_signal_again_counts_only_later(attnd, stubs):
  for _ in range(20):
    with Server(attnd) as server, open_channel(server.tcp) as channel:
      client = Client(stubs, channel)
      call = client.stub.SelfAttention.future(work.endless_request(client))
      poll_until(lambda: client.stub.GetServerInfo(
          client.pb.GetServerInfoRequest(), timeout=60).load.in_flight > 0, 60,
                 'a call in flight')
      at_once = signal_twice_at_once(server, channel)
      if at_once:
        poll_until(lambda: 'signal 15 came twice' in server.log(), 60,
                   'a line about the second signal')
        assert not call.done() and server.process.poll() is None
      time.sleep(0.1)
      server.signal()
      assert server.wait(work.AT_ONCE_SECONDS) == 1
      server.forget()
      if at_once:
        return
  pytest.fail('the machine is too busy to send two signals within 0.1 s')


def test_other_signals_are_ignored(attnd, stubs):
  numbers = (signal.SIGHUP, signal.SIGUSR2, signal.SIGALRM, signal.SIGRTMIN)
  with Server(attnd) as server, open_channel(server.tcp) as channel:
    for number in numbers:
      server.signal(number)
      poll_until(lambda: f'signal {number:d} ' in server.log(), 60,
                 f'a line about signal {number}')
    assert work.refusal_of(Client(stubs, channel)) is None


@pytest.mark.parametrize('delay', range(6))
def test_a_signal_while_starting_ends_the_server(attnd, delay):
  server = Server(attnd)
  server.launch()
  # Sends the signal at different points of the start, after some work.
  sum(range(delay * 200_000))
  server.signal()
  code = server.wait(work.AT_ONCE_SECONDS)
  if code == 1:  # on a very busy machine
    assert 'the start takes too long' in server.log()
  else:
    # The signal itself ends the server before it has read its options.
    assert code in (0, -signal.SIGTERM)
    assert not server.socket_path.exists()
  server.forget()


def test_a_signal_ends_a_server_that_waits_for_its_options(attnd, tmp_path):
  fifo = tmp_path / 'options'
  os.mkfifo(fifo)
  process = subprocess.Popen([str(attnd), f'--config={fifo}'],
                             env=clean_environment())

  def opened_by_both():
    try:
      return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # nobody opens the other end
      return None

  writer = poll_until(opened_by_both, 60, 'the server at its options')
  process.terminate()
  assert process.wait(work.AT_ONCE_SECONDS) == -signal.SIGTERM
  os.close(writer)


def test_options_may_come_through_a_pipe(attnd):
  done = subprocess.run(
      [str(attnd), '--config=/dev/stdin'], input='no-such-option=1\n',
      capture_output=True, text=True, timeout=60, check=False,
      env=clean_environment())
  assert done.returncode == 1
  assert 'no-such-option' in done.stderr


def test_an_old_connection_is_made_anew(attnd, stubs):
  with Server(attnd, '--max-connection-age=1') as server, \
      open_channel(server.tcp) as channel:
    client = Client(stubs, channel)
    ended = threading.Event()

    def seen(state):
      # gRPC closes a connection that the server asked it to give up.
      if state == grpc.ChannelConnectivity.IDLE and connected.is_set():
        ended.set()
      elif state == grpc.ChannelConnectivity.READY:
        connected.set()
    connected = threading.Event()
    channel.subscribe(seen, try_to_connect=True)
    assert connected.wait(60)
    assert ended.wait(60)
    assert work.refusal_of(client) is None


def test_an_address_file_replaces_nothing_else(attnd, tmp_path):
  fifo = tmp_path / 'fifo'
  os.mkfifo(fifo)
  socket_path = tmp_path / 'socket'
  done = subprocess.run(
      [str(attnd), f'--listen=unix:{socket_path}', '--admin-listen=',
       f'--address-file={fifo}'],
      capture_output=True, text=True, timeout=60, check=False,
      env=clean_environment())
  assert done.returncode == 1
  assert f'{fifo} exists and is a named pipe' in done.stderr
  # The server never listened.
  assert os.listdir(tmp_path) == ['fifo'] and fifo.is_fifo()
  assert 'serves on' not in done.stderr


def test_a_misspelt_variable_is_warned_of(attnd):
  with Server(attnd, environment={'ATTND_MEMORY_BUDGET': '1',
                                  'ATTND_PORT': '50052',
                                  'ATTND_SERVICE_HOST': '10.0.0.1'}) as server:
    poll_until(lambda: server.log().count('names no option') == 2, 60,
               'the warnings')
    said = server.log()
  assert 'ATTND_MEMORY_BUDGET names no option' in said
  assert 'ATTND_PORT names no option and is ignored; the port is part of ' \
      'ATTND_LISTEN' in said
  assert 'ATTND_SERVICE_HOST' not in said


def test_an_idle_server_ends_at_once(attnd):
  with Server(attnd) as server:
    server.signal()
    assert server.wait(work.AT_ONCE_SECONDS) == 0
    assert not server.socket_path.exists()


def run_that_must_fail(attnd, listen):
  """Returns (exit code, output)."""
  done = subprocess.run(
      [str(attnd), f'--listen={listen}', '--admin-listen='],
      capture_output=True, text=True, timeout=120, check=False)
  return done.returncode, done.stderr


def test_a_busy_port_is_an_error_at_start(attnd, server):
  code, said = run_that_must_fail(attnd, server.tcp)
  assert code not in (0, None) and code > 0
  assert server.tcp in said


def test_a_busy_socket_path_is_an_error_at_start(attnd, server, client):
  code, said = run_that_must_fail(attnd, server.unix)
  assert code > 0
  assert str(server.socket_path) in said
  # The first server still has the lock of its path.
  with open_channel(server.unix) as channel:
    assert health(channel).Check(
        health_pb2.HealthCheckRequest(), timeout=60).status == SERVING


def test_a_stale_socket_is_replaced(attnd, stubs):
  with Server(attnd) as server:
    server.kill()
    assert server.socket_path.exists()
    server.start()
    with open_channel(server.unix) as channel:
      assert work.refusal_of(Client(stubs, channel)) is None


def test_version(attnd):
  done = subprocess.run([str(attnd), '--version'], capture_output=True,
                        text=True, timeout=60, check=True)
  assert '0.' in done.stdout


def test_a_wrong_address_is_an_error_at_start(attnd):
  code, said = run_that_must_fail(attnd, 'no-port')
  assert code > 0
  assert 'no-port' in said


def test_a_call_while_starting_is_served_once_ready(attnd, stubs):
  # Launches without waiting, because the client's wait_for_ready waits.
  server = Server(attnd)
  server.launch()
  try:
    poll_until(server.socket_path.exists, 60, 'the socket')
    with open_channel(f'unix:{server.socket_path}') as channel:
      client = Client(stubs, channel)

      def served():
        try:
          client.stub.SelfAttention(
              work.small_request(client), timeout=60, wait_for_ready=True)
          return True
        except grpc.RpcError as error:
          assert Refusal(error).code == grpc.StatusCode.UNAVAILABLE
          return False

      poll_until(served, 60, 'a served call')
  finally:
    server.stop()
