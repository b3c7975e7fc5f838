"""Runs a real Envoy with deploy/envoy/envoy.yaml, in front of real servers."""

import collections
import contextlib
import itertools
import re
import time

import grpc
import numpy as np
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from support import reference, work
from support.callers import Callers
from support.client import Client, Refusal
from support.envoy import CONFIG, TLS_CONFIG, Envoy
from support.http2 import DATA, frame
from support.raw_http2 import RawConnection, Reader, header_block, message
from support.relay import Relay
from support.server import Server, free_port, open_channel, poll_until
from support.stubs import REPOSITORY

MIB = 1 << 20
CALLERS = 6
SERVICE_CONFIG = (REPOSITORY / 'proto' / 'attnd' / 'v1' /
                  'attention_grpc_service_config.json')

# (q_heads = kv_heads, q_len, kv_len, head_dim)
SHAPES = [
    (1, 16, 16, 16),
    (8, 128, 128, 64),
    (16, 320, 320, 64),   # 4 MiB in
    (64, 320, 320, 64),   # 15 MiB in, 5 MiB out
    (8, 16, 2040, 128),   # 16 MiB in, little out
]


class Problem:
  """A request and its right answer."""

  def __init__(self, client, rng, shape):
    heads, q_len, kv_len, head_dim = shape
    draw = lambda *s: rng.standard_normal(s).astype(np.float32)
    tensors = (draw(heads, q_len, head_dim), draw(heads, kv_len, head_dim),
               draw(heads, kv_len, head_dim))
    self.payload_bytes = sum(t.nbytes for t in tensors)
    self.request = client.request(*tensors)
    self.expected, _ = reference.attention(*tensors)
    self.bound = reference.error_bound(tensors[2])

  def check(self, client, response):
    reference.assert_close(client.array(response.output), self.expected,
                           self.bound)


@pytest.fixture(scope='module')
def problems(stubs):
  rng = np.random.default_rng(4)
  with open_channel('unix:/unused') as channel:  # only messages are made
    client = Client(stubs, channel)
    made = [Problem(client, rng, shape) for shape in SHAPES]
  assert max(p.payload_bytes for p in made) == 16 * MIB
  return made


class Load(Callers):
  """Callers of all problems. Every answer is checked."""

  def __init__(self, stubs, address, problems):
    super().__init__(CALLERS)
    self._stubs, self._address, self._problems = stubs, address, problems
    self.answered_bytes = collections.Counter()  # calls by payload bytes
    self.cut_off = 0

  def wait_for_more(self, requests):
    self.wait_for(self.answers + requests)
    assert not self.failures, self.failures

  def call_until_over(self, index):
    with open_channel(self._address) as channel:
      client = Client(self._stubs, channel)
      for turn in itertools.count(index):
        if self.over.is_set():
          return
        problem = self._problems[turn % len(self._problems)]
        problem.check(client, self._ask(client, problem.request))
        with self.lock:
          self.answered_bytes[problem.payload_bytes] += 1
        self.answered()

  def _ask(self, client, request):
    """A proxy cannot retry a call whose answer has begun. Like a client, this
    function sends such a call again, and counts it. It repeats no other
    calls."""
    while True:
      call = client.stub.Attention.future(request, timeout=120)
      error = call.exception()
      if error is None:
        return call.result()
      if not call.initial_metadata():
        raise error
      with self.lock:
        self.cut_off += 1


@contextlib.contextmanager
def servers_of(attnd, *flags, count=3):
  with contextlib.ExitStack() as stack:
    yield [stack.enter_context(Server(attnd, *flags)) for _ in range(count)]


def ended_calls(server):
  """Returns how many calls of these two methods are in the server's log."""
  return len(re.findall(r'method=(SelfAttention|AttentionStream) ',
                        server.log()))


def wait_until_busy(envoy, server):
  poll_until(lambda: envoy.host_stats(server.tcp)['rq_active'] > 0, 60,
             'a call on the server')


def test_every_answer_is_right_while_servers_die_and_drain(
    attnd, stubs, problems):
  with servers_of(attnd) as (killed, drained, kept), \
      Envoy([s.tcp for s in (killed, drained, kept)]) as envoy, \
      Load(stubs, envoy.address, problems) as load:
    load.wait_for_more(60)
    # Envoy's workers learn which servers are healthy a little later than its
    # statistics.
    poll_until(lambda: all(envoy.host_stats(s.tcp)['rq_total'] > 0
                           for s in (killed, drained, kept)), 60,
               'a request at every server')

    wait_until_busy(envoy, killed)
    killed.kill()
    load.wait_for_more(60)
    envoy.wait_for_healthy(2)
    cut_by_kill = load.cut_off
    retries_of_kill = envoy.stat('upstream_rq_retry')
    # The server has finished what had arrived, and what was on the way, and
    # nothing else.
    assert cut_by_kill <= CALLERS
    assert retries_of_kill + cut_by_kill > 0

    wait_until_busy(envoy, drained)
    drained.signal()
    load.wait_for_more(60)
    assert drained.wait() == 0
    # Only one of three servers is left. Envoy must not use all servers again
    # for this reason.
    envoy.wait_for_healthy(1)
    load.wait_for_more(30)
    assert load.cut_off == cut_by_kill, 'a drain cut an answer off'

    # Envoy uses a server that comes back.
    before = envoy.host_stats(killed.tcp)['rq_success']
    killed.forget()
    with Server(attnd, listen=killed.tcp):
      poll_until(lambda: load.failures or
                 envoy.host_stats(killed.tcp)['rq_success'] > before, 120,
                 'an answer of the server that came back')
      load.__exit__()

    assert not load.failures, load.failures
    assert envoy.stat('retry_or_shadow_abandoned') == 0
    assert envoy.stat('lb_healthy_panic') == 0
    print(f'\n{load.answers} requests, all answered right:', ', '.join(
        f'{n} of {size / MIB:.2f} MiB'
        for size, n in sorted(load.answered_bytes.items())))
    print(f'{load.cut_off} answers cut off by the kill and asked for again')
    for name in ('upstream_rq_total', 'upstream_rq_retry',
                 'upstream_rq_retry_success', 'upstream_rq_retry_overflow',
                 'upstream_rq_retry_limit_exceeded',
                 'retry_or_shadow_abandoned', 'outlier_detection.ejections_'
                 'enforced_total', 'health_check.failure'):
      print(f'{name}: {envoy.stat(name)}')
    for name, server in (('killed', killed), ('drained', drained),
                         ('kept', kept)):
      print(name, {k: v for k, v in envoy.host_stats(server.tcp).items()
                   if k.startswith('rq_')})


def test_an_announced_drain_needs_no_retry(attnd, stubs, problems):
  """Envoy leaves the server before the server refuses a call."""
  with Server(attnd, '--drain-announce=6') as drained, \
      Server(attnd) as kept, \
      Envoy([s.tcp for s in (drained, kept)]) as envoy, \
      Load(stubs, envoy.address, problems[:3]) as load:
    poll_until(lambda: all(envoy.host_stats(s.tcp)['rq_total'] > 0
                           for s in (drained, kept)), 60,
               'a request at both servers')
    signalled = time.monotonic()
    drained.signal()
    envoy.wait_for_healthy(1)
    print(f'\nEnvoy noticed after {time.monotonic() - signalled:.2f} s')
    load.wait_for_more(100)
    assert drained.wait() == 0
    load.wait_for_more(100)
    load.__exit__()
    assert not load.failures, load.failures
    assert load.cut_off == 0
    assert envoy.stat('upstream_rq_retry') == 0
    print(f'{load.answers} requests, no retry')


class Account(Callers):
  """Callers that never send a call again, and count what becomes of each: a
  right answer, an error, or a wrong answer, which is a failure."""

  def __init__(self, stubs, address, problems):
    super().__init__(CALLERS)
    self._stubs, self._address, self._problems = stubs, address, problems
    self.sent = 0
    self.errors = collections.Counter()  # by status code

  def wait_for_more(self, answers):
    self.wait_for(self.answers + answers)

  def call_until_over(self, index):
    with open_channel(self._address) as channel:
      client = Client(self._stubs, channel)
      calls = (lambda p: client.stub.Attention(p.request, timeout=120),
               lambda p: client.stream(p.request, chunk_bytes=MIB))
      for turn in itertools.count(index):
        if self.over.is_set():
          return
        problem = self._problems[turn % len(self._problems)]
        with self.lock:
          self.sent += 1
        try:
          problem.check(client, calls[turn // 2 % 2](problem))
          self.answered()
        except grpc.RpcError as error:
          with self.lock:
            self.errors[error.code().name] += 1


def test_a_kill_loses_calls_only_with_an_error(attnd, stubs, problems):
  """Kills one of two servers three times while it has calls. Envoy retries
  those whose answer has not begun. The others end with an error, and no caller
  gets a part of an answer, or that of another call."""
  with Server(attnd, listen=f'127.0.0.1:{free_port()}') as killed, \
      Server(attnd) as kept, \
      Envoy([killed.tcp, kept.tcp]) as envoy, \
      Account(stubs, envoy.address, problems) as account:
    account.wait_for_more(30)
    for _ in range(3):
      envoy.wait_for_healthy(2)
      wait_until_busy(envoy, killed)
      killed.kill()
      account.wait_for_more(30)
      envoy.wait_for_healthy(1)
      account.wait_for_more(30)
      killed.start()
    account.__exit__()
    assert not account.failures, account.failures
    lost = sum(account.errors.values())
    assert account.sent == account.answers + lost
    assert set(account.errors) <= {'INTERNAL', 'UNAVAILABLE'}, account.errors
    # A kill can end no other calls than those that the callers wait for.
    assert lost <= 3 * CALLERS
    # Otherwise the kills did not hit a call.
    assert lost + envoy.stat('upstream_rq_retry') > 0
    print(f'\n{account.sent} calls, {account.answers} right answers, '
          f'{dict(account.errors)} errors, 0 wrong answers, '
          f'{envoy.stat("upstream_rq_retry")} retries')


def test_what_is_too_much_now_is_retried(attnd, stubs, problems):
  with servers_of(attnd, '--max-in-flight=1') as servers, \
      Envoy([s.tcp for s in servers]) as envoy, \
      Load(stubs, envoy.address, problems[:3]) as load:
    load.wait_for_more(200)
    poll_until(lambda: load.failures or envoy.stat('upstream_rq_retry') > 0,
               60, 'a retry')
    load.__exit__()
    assert not load.failures, load.failures
    print(f'\n{load.answers} requests, {envoy.stat("upstream_rq_retry")} '
          'retries of RESOURCE_EXHAUSTED')


def test_what_will_never_do_is_refused_once(attnd, connect, refused):
  with Server(attnd, '--memory-budget-bytes=1048576') as server, \
      Envoy([server.tcp]) as envoy:
    client = connect(envoy.address)
    refusal = refused(lambda: client.stub.SelfAttention(
        client.self_request(np.ones((1, 1024, 256), np.float32)), timeout=60))
    assert refusal.code == grpc.StatusCode.RESOURCE_EXHAUSTED, refusal
    assert refusal.reason == 'MEMORY_BUDGET' and refusal.retry_info is None
    assert refusal.retry_pushback == '-1', refusal
    refusal = refused(lambda: client.stub.SelfAttention(
        client.pb.SelfAttentionRequest(sequence=client.pb.Tensor(
            dtype=client.pb.DATA_TYPE_F32, shape=[2, 2], data=b'1')),
        timeout=60))
    assert refusal.field == 'sequence.data', refusal
    assert envoy.stat('upstream_rq_retry') == 0


def test_the_last_refusal_reaches_the_caller(attnd, connect):
  with Server(attnd, '--max-in-flight=1') as server, \
      Envoy([server.tcp]) as envoy:
    client, busy = connect(server.tcp), connect(server.tcp)
    request = work.endless_request(busy)
    call = work.hold_slot(client,
                          lambda: busy.stub.SelfAttention.future(request))
    with pytest.raises(grpc.RpcError) as caught:
      proxied = connect(envoy.address)
      proxied.stub.SelfAttention(work.small_request(proxied), timeout=120)
    refusal = Refusal(caught.value)
    assert refusal.reason == 'TOO_MANY_REQUESTS', refusal
    assert refusal.retry_info.retry_delay.ToMilliseconds() == 100
    assert refusal.retry_pushback == '100'
    assert envoy.stat('upstream_rq_retry') == 8
    call.cancel()


def test_what_is_too_large_to_keep_passes_once(attnd, stubs, connect, rng):
  with Server(attnd) as server, Envoy([server.tcp]) as envoy:
    client = connect(envoy.address)
    problem = Problem(client, rng, (8, 16, 4096, 128))
    assert problem.payload_bytes > 32 * MIB
    problem.check(client, client.stub.Attention(problem.request, timeout=120))
    assert envoy.stat('retry_or_shadow_abandoned') == 1


def test_a_silent_call_outlives_the_pings_of_envoy(attnd, connect):
  """The call is computed once, however many pings Envoy sends during it."""
  with Server(attnd, '--log-level=debug') as server, \
      Relay(server.tcp) as relay, \
      Envoy([relay.address], ping_interval='0.5s') as envoy:
    client = connect(envoy.address)
    stream = lambda x: client.stream(client.request(x, x, x),
                                     chunk_bytes=MIB)
    unary = lambda x: client.stub.SelfAttention(client.self_request(x),
                                                timeout=600)
    rows, calls = work.rows_for(client, seconds=5), 1
    for call in (unary, stream):
      for _ in range(5):
        before, calls = relay.pings, calls + 1
        answer = call(np.ones((1, rows, 1), np.float32))
        assert np.allclose(client.array(answer.output), 1)
        # By default, gRPC servers end a connection at the third ping.
        if relay.pings - before >= 6:
          break
        rows = min(2 * rows, MIB)
      else:
        pytest.fail('Envoy does not ping')
    poll_until(lambda: ended_calls(server) >= calls, 60, 'a line for each call')
    assert ended_calls(server) == calls
    assert envoy.stat('upstream_rq_retry') == 0
    assert envoy.stat('upstream_cx_destroy_with_active_rq') == 0


def test_who_stops_in_a_message_ends_no_other_call(attnd, connect):
  # attnd would end the connection after 9 s.
  with Server(attnd, '--stream-idle-timeout=6') as server, \
      Envoy([server.tcp], request_timeout='2s') as envoy, Reader() as reader:
    other = connect(envoy.address)
    request = work.endless_request(other)
    call = other.stub.SelfAttention.future(request)
    half = RawConnection(envoy.address, reader)
    stream = half.open(header_block('Attention'))
    half.send(frame(DATA, message(bytes(10_000), claimed=4 * MIB), 0, stream))
    poll_until(lambda: envoy.stat('upstream_rq_tx_reset') > 0, 60,
               'the end of the half request')
    assert not call.done()
    assert envoy.stat('upstream_cx_destroy') == 0
    call.cancel()
    half.close()


def test_a_client_that_watches_the_health_keeps_calling(attnd, connect, stubs):
  """The health of one server must not keep a client away from the others."""
  with servers_of(attnd, count=2) as (drained, kept), \
      Envoy([drained.tcp, kept.tcp]) as envoy, \
      grpc.insecure_channel(envoy.address, options=[
          ('grpc.enable_http_proxy', 0),
          ('grpc.service_config', SERVICE_CONFIG.read_text())]) as channel:
    with pytest.raises(grpc.RpcError) as caught:
      next(health_pb2_grpc.HealthStub(channel).Watch(
          health_pb2.HealthCheckRequest(), timeout=60))
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    client = Client(stubs, channel)
    request = work.small_request(client)
    client.stub.SelfAttention(request, timeout=60)
    drained.signal()
    envoy.wait_for_healthy(1)
    client.stub.SelfAttention(request, timeout=60)


def test_the_file_with_tls_differs_only_in_tls():
  plain, tls = (yaml.safe_load(path.read_text()) for path in (CONFIG, TLS_CONFIG))
  (listener,), (cluster,) = (tls['static_resources'][name]
                             for name in ('listeners', 'clusters'))
  (chain,) = listener['filter_chains']
  for holder in (chain, cluster):
    context = holder.pop('transport_socket')['typed_config']['common_tls_context']
    assert context['tls_params']['tls_minimum_protocol_version'] == 'TLSv1_2'
  address = listener['address']['socket_address']
  assert address['address'] == '0.0.0.0'
  address['address'] = '127.0.0.1'
  assert plain == tls
