"""Tests the end of a server: the announcement, the drain, and restarts of
several servers one after the other while clients call them."""

import contextlib
import http.client
import json
import os
import resource
import signal
import socket
import time

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from support import work
from support.callers import Callers
from support.client import Client, Refusal
from support.server import Server, free_port, open_channel, poll_until

SERVICE = 'attnd.v1.AttentionService'
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
# Longer than any test waits, so that only a signal ends such an announcement.
ENDLESS = 3600


def watch(channel, service=''):
  return health_pb2_grpc.HealthStub(channel).Watch(
      health_pb2.HealthCheckRequest(service=service), timeout=120)


def check(address, service=''):
  """Returns the health that a new connection reads."""
  with open_channel(address) as channel:
    return health_pb2_grpc.HealthStub(channel).Check(
        health_pb2.HealthCheckRequest(service=service), timeout=60).status


def get(server, path):
  """Returns (status, text) of the admin port."""
  connection = http.client.HTTPConnection(server.admin, timeout=60)
  try:
    connection.request('GET', path)
    response = connection.getresponse()
    return response.status, response.read().decode()
  finally:
    connection.close()


def announcing(server, channel, number=signal.SIGTERM):
  """Sends the signal, waits until clients have read NOT_SERVING, and returns
  the time of the signal."""
  watches = [watch(channel, name) for name in ('', SERVICE)]
  assert [next(w).status for w in watches] == [SERVING, SERVING]
  sent = time.monotonic()
  server.signal(number)
  assert [next(w).status for w in watches] == [NOT_SERVING, NOT_SERVING]
  print(f'NOT_SERVING after {1e3 * (time.monotonic() - sent):.1f} ms')
  return sent


def wait_until_busy(client):
  poll_until(lambda: client.stub.GetServerInfo(
      client.pb.GetServerInfoRequest(), timeout=60).load.in_flight > 0, 60,
             'a call in flight')


def refused_at(client):
  """Calls until the server refuses, and returns the time of the refusal, which
  has to be that of a drain."""

  def refusal():
    return work.refusal_of(client)

  refused = poll_until(refusal, 120, 'a refusal')
  assert refused.code == grpc.StatusCode.UNAVAILABLE, refused
  return time.monotonic()


def test_the_announcement_is_full_service(attnd, stubs):
  with Server(attnd, f'--drain-announce={ENDLESS}',
              admin='127.0.0.1:0') as server, \
      open_channel(server.tcp) as channel:
    announcing(server, channel)
    poll_until(lambda: f'announcing the drain, which begins in {ENDLESS} s' in
               server.log(), 60, 'a line about the announcement')
    for address in server.addresses:
      for service in ('', SERVICE):
        assert check(address, service) == NOT_SERVING
      for _ in range(20):
        with open_channel(address) as new:
          assert work.refusal_of(Client(stubs, new)) is None
    assert work.refusal_of(Client(stubs, channel)) is None
    status, why = get(server, '/readyz')
    assert (status, get(server, '/livez')) == (503, (200, 'ok\n'))
    assert 'about to drain' in why and 'still takes calls' in why
    server.signal(signal.SIGINT)
    assert server.wait(work.AT_ONCE_SECONDS) == 1
    server.forget()


def test_the_announcement_lasts_as_long_as_the_option_says(attnd, stubs):
  """Signals two servers at once. Each serves for its own time, and then
  refuses calls while one that it took before still runs."""
  seconds = (1, 8)
  with contextlib.ExitStack() as stack:
    enter = stack.enter_context
    servers = [enter(Server(attnd, f'--drain-announce={s}')) for s in seconds]
    clients = [Client(stubs, enter(open_channel(s.tcp))) for s in servers]
    owners = [Client(stubs, enter(open_channel(s.unix))) for s in servers]
    # These calls keep both servers in their drain until they are cancelled.
    calls = [o.stub.SelfAttention.future(work.endless_request(o))
             for o in owners]
    for client in clients:
      wait_until_busy(client)
    sent = [announcing(s, c.channel) for s, c in zip(servers, clients)]
    short = refused_at(clients[0]) - sent[0]
    assert work.refusal_of(clients[1]) is None
    long = refused_at(clients[1]) - sent[1]
    print(f'refused after {short:.2f} s and {long:.2f} s')
    assert short >= seconds[0] and long >= seconds[1]
    for call, server in zip(calls, servers):
      assert not call.done()
      call.cancel()
      assert server.wait(work.AT_ONCE_SECONDS) == 0


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGQUIT])
def test_these_signals_skip_the_announcement(attnd, stubs, number):
  with Server(attnd, f'--drain-announce={ENDLESS}') as server, \
      open_channel(server.tcp) as channel, open_channel(server.unix) as busy:
    own = Client(stubs, busy)
    call = own.stub.SelfAttention.future(work.endless_request(own))
    client = Client(stubs, channel)
    wait_until_busy(client)
    announcing(server, channel, number)
    refusal = work.refusal_of(client)
    assert refusal.code == grpc.StatusCode.UNAVAILABLE, refusal
    assert refusal.reason == 'DRAINING', refusal
    call.cancel()
    assert server.wait(work.AT_ONCE_SECONDS) == 0


def test_a_second_signal_ends_the_announcement_and_the_calls(attnd, stubs):
  with Server(attnd, f'--drain-announce={ENDLESS}') as server, \
      open_channel(server.tcp) as channel:
    client = Client(stubs, channel)
    call = client.stub.SelfAttention.future(work.endless_request(client))
    wait_until_busy(client)
    announcing(server, channel)
    assert not call.done()
    server.signal(signal.SIGINT)
    assert server.wait(work.AT_ONCE_SECONDS) == 1
    assert call.code() in (grpc.StatusCode.CANCELLED,
                           grpc.StatusCode.UNAVAILABLE)
    server.forget()


def test_hangup_is_no_end_of_an_announcement(attnd, stubs):
  with Server(attnd, f'--drain-announce={ENDLESS}') as server, \
      open_channel(server.tcp) as channel:
    announcing(server, channel)
    server.signal(signal.SIGHUP)
    poll_until(lambda: f'signal {signal.SIGHUP:d} ' in server.log(), 60,
               'a line about the signal')
    assert work.refusal_of(Client(stubs, channel)) is None
    server.signal(signal.SIGINT)
    assert server.wait(work.AT_ONCE_SECONDS) == 1
    server.forget()


def states(server, channel):
  """Returns whether the server is live and ready, as the admin port says, and
  its health, as an open connection says."""
  live, (ready, why) = get(server, '/livez'), get(server, '/readyz')
  health = health_pb2_grpc.HealthStub(channel).Check(
      health_pb2.HealthCheckRequest(service=SERVICE), timeout=60).status
  return live == (200, 'ok\n'), ready == 200, health, why


def test_a_full_server_is_live_and_ready(attnd, stubs):
  with Server(attnd, '--max-in-flight=1', admin='127.0.0.1:0') as server, \
      open_channel(server.tcp) as channel, open_channel(server.tcp) as busy:
    client, own = Client(stubs, channel), Client(stubs, busy)
    call = work.hold_slot(client, lambda: own.stub.SelfAttention.future(
        work.endless_request(own)))
    assert work.refusal_of(client).reason == 'TOO_MANY_REQUESTS'
    assert states(server, channel)[:3] == (True, True, SERVING)
    call.cancel()


def test_a_draining_server_is_live_and_not_ready(attnd, stubs):
  with Server(attnd, admin='127.0.0.1:0') as server, \
      open_channel(server.tcp) as channel:
    client = Client(stubs, channel)
    call = client.stub.SelfAttention.future(work.endless_request(client))
    wait_until_busy(client)
    announcing(server, channel)
    live, ready, health, why = states(server, channel)
    assert (live, ready, health) == (True, False, NOT_SERVING)
    assert 'takes no new calls' in why
    call.cancel()
    assert server.wait(work.AT_ONCE_SECONDS) == 0


def test_a_server_without_descriptors_is_live_and_not_ready(attnd):
  """The admin port has descriptors of its own, so that it can tell."""
  with Server(attnd, admin='127.0.0.1:0') as server, \
      open_channel(server.tcp) as channel, contextlib.ExitStack() as stack:
    assert states(server, channel)[:3] == (True, True, SERVING)
    pid = server.process.pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    files = len(os.listdir(f'/proc/{pid}/fd'))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (files + 24, hard))
    host, port = server.tcp.split(':')
    for _ in range(60):
      stack.enter_context(socket.create_connection((host, int(port))))
    poll_until(lambda: not states(server, channel)[1], 60, 'a refusal')
    live, ready, health, why = states(server, channel)
    assert (live, ready, health) == (True, False, NOT_SERVING)
    assert 'cannot accept connections' in why
    stack.close()
    poll_until(lambda: states(server, channel)[1], 60, 'a ready server')
    assert states(server, channel)[:3] == (True, True, SERVING)


# Enough for CI. Set both to try more, for example 10 rounds and 20000 calls.
ROUNDS = int(os.environ.get('ATTND_RESTART_ROUNDS', '3'))
CALLS = int(os.environ.get('ATTND_RESTART_CALLS', '3000'))
CALLERS = 4
# The clients ask every server for its health, and call the servers that are
# SERVING in turn. They retry nothing.
BALANCED = [
    ('grpc.service_config', json.dumps({
        'loadBalancingConfig': [{'round_robin': {}}],
        'healthCheckConfig': {'serviceName': SERVICE}})),
    ('grpc.enable_retries', 0),
    ('grpc.enable_http_proxy', 0),
    ('grpc.use_local_subchannel_pool', 1),
    # Clients find a server that is back soon, so that the test is short.
    ('grpc.initial_reconnect_backoff_ms', 100),
    ('grpc.min_reconnect_backoff_ms', 100),
    ('grpc.max_reconnect_backoff_ms', 200),
]


class Clients(Callers):
  """Clients that call the servers, and keep every error in `failures`."""

  def __init__(self, stubs, addresses):
    super().__init__(CALLERS)
    self._target = 'ipv4:' + ','.join(addresses)
    self._stubs = stubs

  def call_until_over(self, _):
    with grpc.insecure_channel(self._target, options=BALANCED) as channel:
      client = Client(self._stubs, channel)
      grpc.channel_ready_future(channel).result(60)
      request = client.self_request(np.ones((4, 2), np.float32))
      while not self.over.is_set():
        try:
          answer = client.stub.SelfAttention(request, timeout=60)
          assert np.allclose(client.array(answer.output), 1), 'a wrong answer'
          self.answered()
        except grpc.RpcError as error:
          self.failures.append(str(Refusal(error)))


def connections(server, stubs):
  """Returns how many connections other clients have."""
  with open_channel(server.tcp) as channel:
    client = Client(stubs, channel)
    return client.stub.GetServerInfo(
        client.pb.GetServerInfoRequest(), timeout=60).load.connections - 1


def rolling_restart(attnd, stubs, announce_s):
  """Restarts three servers one after the other, several times, while clients
  call them. Returns (number of answers, errors)."""
  with contextlib.ExitStack() as stack:
    servers = [
        stack.enter_context(Server(attnd, f'--drain-announce={announce_s}',
                                   listen=f'127.0.0.1:{free_port()}'))
        for _ in range(3)]
    with Clients(stubs, [s.tcp for s in servers]) as clients:
      for restart in range(1, 3 * ROUNDS + 1):
        server = servers[restart % 3]
        poll_until(lambda s=server: connections(s, stubs) >= CALLERS, 60,
                   'a connection of each client')
        server.signal()
        assert server.wait() == 0
        server.start()
        clients.wait_for(restart * CALLS // (3 * ROUNDS))
    for server in servers:
      server.signal(signal.SIGINT)
      assert server.wait() == 0
    return clients.answers, clients.failures


def test_a_rolling_restart_loses_no_call(attnd, stubs):
  answered, errors = rolling_restart(attnd, stubs, announce_s=1)
  print(f'{answered} answers during {3 * ROUNDS} restarts')
  assert not errors, errors[:10]
  assert answered >= CALLS


def test_a_rolling_restart_without_an_announcement_loses_calls(attnd, stubs):
  """Without this test, the one above would also pass if nobody called the
  servers that end."""
  _, errors = rolling_restart(attnd, stubs, announce_s=0)
  assert errors
  # gRPC cancels a call whose message has not arrived when the drain is over.
  assert all('UNAVAILABLE' in error or 'CANCELLED' in error
             for error in errors), errors[:10]
  print(f'{len(errors)} errors')
