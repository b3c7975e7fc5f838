"""What is tried again, and when. The server here is a scripted one, over a real
socket, except where attnd itself is asked to be full."""

import asyncio
import concurrent.futures
import json
import math
import threading
import time

import attnd
from attnd import clients, exchange
from attnd.v1 import attention_pb2 as pb
from attnd.v1 import attention_pb2_grpc as pb_grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
import grpc
import numpy as np
import pytest

from support.server import Server, poll_until

UNAVAILABLE = (grpc.StatusCode.UNAVAILABLE, None)
CANCELLED = (grpc.StatusCode.CANCELLED, None)
HANGS = (None, None)  # waits until the client has gone
FULL = (grpc.StatusCode.RESOURCE_EXHAUSTED, None)
QUICK = attnd.RetryPolicy(initial_backoff=0.01, max_backoff=0.1)


def full_for(seconds):
  return (grpc.StatusCode.RESOURCE_EXHAUSTED, seconds)


class Scripted(pb_grpc.AttentionServiceServicer):
  """Fails as the script says, then answers."""

  def __init__(self, script):
    self.times = []
    self._script = script

  def GetServerInfo(self, request, context):
    self._follow_the_script(context)
    return pb.GetServerInfoResponse(threads=7)

  def Benchmark(self, request, context):
    """If two repetitions are asked for, sends one event before it fails."""
    if request.repetitions == 2:
      yield pb.BenchmarkResponse(progress=pb.BenchmarkProgress(phase='flash'))
    self._follow_the_script(context)
    yield pb.BenchmarkResponse(result=pb.BenchmarkResult(num_queries=7))

  def _follow_the_script(self, context):
    self.times.append(time.monotonic())
    if len(self.times) > len(self._script):
      return
    code, retry_delay = self._script[len(self.times) - 1]
    if (code, retry_delay) == HANGS:
      gone = threading.Event()
      context.add_callback(gone.set)
      gone.wait()
      return
    status = status_pb2.Status(code=code.value[0], message='scripted')
    if retry_delay is not None:
      delay = duration_pb2.Duration()
      delay.FromNanoseconds(int(retry_delay * 1e9))
      detail = any_pb2.Any()
      detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
      status.details.append(detail)
    context.set_trailing_metadata(
        (('grpc-status-details-bin', status.SerializeToString()),))
    context.abort(code, 'scripted')


@pytest.fixture
def scripted():
  """scripted(script) starts a server; returns it and its address."""
  servers = []

  def start(script):
    servicer = Scripted(script)
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    pb_grpc.add_AttentionServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port('127.0.0.1:0')
    server.start()
    servers.append(server)
    return servicer, f'127.0.0.1:{port}'

  yield start
  for server in servers:
    server.stop(None).wait()


@pytest.fixture(params=['sync', 'asyncio'])
def ask(request):
  """ask(address, call, ...) makes the call, by default server_info(), by one of
  the clients, which gets the settings."""

  def info(client):
    return client.server_info()

  def sync(address, call=info, retry=QUICK, **settings):
    with attnd.Client(address, retry=retry, **settings) as client:
      return call(client)

  async def by_asyncio(address, call=info, retry=QUICK, **settings):
    async with attnd.AsyncClient(address, retry=retry, **settings) as client:
      return await call(client)

  if request.param == 'sync':
    return sync
  return lambda *args, **kwargs: asyncio.run(by_asyncio(*args, **kwargs))


@pytest.mark.parametrize('failure', [UNAVAILABLE, CANCELLED], ids=str)
def test_tried_again_till_it_succeeds(scripted, ask, failure):
  servicer, address = scripted([failure] * 12)
  assert ask(address).threads == 7
  assert len(servicer.times) == 13


def test_not_more_often_than_the_policy_says(scripted, ask):
  servicer, address = scripted([UNAVAILABLE] * 9)
  with pytest.raises(attnd.Unavailable, match='scripted .tried 3 times within'):
    ask(address, retry=attnd.RetryPolicy(max_attempts=3, initial_backoff=0.01))
  assert len(servicer.times) == 3


def test_full_is_tried_again_when_the_server_says_so(scripted, ask):
  servicer, address = scripted([full_for(0.2)])
  assert ask(address).threads == 7
  assert servicer.times[1] - servicer.times[0] >= 0.2


@pytest.mark.parametrize('failure', [
    FULL,  # too large, so waiting does not help
    (grpc.StatusCode.INVALID_ARGUMENT, None),
    (grpc.StatusCode.INTERNAL, None),
    (grpc.StatusCode.DEADLINE_EXCEEDED, None),
    (grpc.StatusCode.UNIMPLEMENTED, 0.01),
], ids=str)
def test_nothing_else_is_tried_again(scripted, ask, failure):
  servicer, address = scripted([failure])
  with pytest.raises(attnd.AttndError) as caught:
    ask(address)
  assert caught.value.code == failure[0]
  assert len(servicer.times) == 1


def test_no_wait_that_the_deadline_forbids(scripted, ask):
  servicer, address = scripted([full_for(3600)])
  start = time.monotonic()
  with pytest.raises(attnd.ResourceExhausted) as caught:
    ask(address, timeout=30)
  assert caught.value.retry_delay == 3600
  assert time.monotonic() - start < 25
  assert len(servicer.times) == 1


def test_a_deadline_does_not_hide_the_failure_before_it(scripted, ask):
  _, address = scripted([UNAVAILABLE, HANGS])
  with pytest.raises(attnd.DeadlineExceeded,
                     match='attempt 2.*UNAVAILABLE: scripted'):
    ask(address, timeout=2)


def test_a_benchmark_is_tried_again_before_its_first_event(scripted, ask):
  servicer, address = scripted([UNAVAILABLE])
  assert ask(address, lambda client: client.benchmark(
      num_vectors=1)).num_queries == 7
  assert len(servicer.times) == 2


def test_a_benchmark_that_has_begun_is_not_tried_again(scripted, ask):
  servicer, address = scripted([UNAVAILABLE])
  with pytest.raises(attnd.Unavailable):
    ask(address, lambda client: client.benchmark(num_vectors=1, repetitions=2))
  assert len(servicer.times) == 1


@pytest.fixture
def pauses(monkeypatch):
  """A list that grows when a client begins to wait as long as a server asked."""
  begun = []

  class Pause(exchange.Pause):

    def __init__(self, *args):
      super().__init__(*args)
      if self.seconds > 60:
        begun.append(self)

  monkeypatch.setattr(exchange, 'Pause', Pause)
  return begun


def test_a_closed_client_tries_nothing_again(scripted, pauses):
  """Neither a call that close() cancels nor one that waits for its next
  attempt."""
  servicer, address = scripted([HANGS, full_for(3600)])
  with concurrent.futures.ThreadPoolExecutor() as pool:
    for reached, kind in ((servicer.times, attnd.Cancelled),
                          (pauses, attnd.ResourceExhausted)):
      with attnd.Client(address, timeout=None) as client:
        call = pool.submit(client.server_info)
        poll_until(lambda reached=reached: reached, 60, 'the call')
      assert isinstance(call.exception(60), kind)
  with pytest.raises(attnd.Cancelled, match='the client was closed'):
    client.server_info()
  assert len(servicer.times) == 2


def test_close_ends_what_an_async_client_does(scripted, pauses):
  """A call, a stream and a pause. Their tasks are not cancelled."""
  servicer, address = scripted([HANGS, HANGS, full_for(3600)])

  async def by_asyncio(call, kind, count):
    async with attnd.AsyncClient(address, timeout=None) as client:
      task = asyncio.create_task(call(client))
      while len(servicer.times) < count or (count == 3 and not pauses):
        await asyncio.sleep(0.01)
      await client.close()
      with pytest.raises(kind):
        await task

  for count, (call, kind) in enumerate((
      (lambda client: client.server_info(), attnd.Cancelled),
      (lambda client: client.benchmark(num_vectors=1), attnd.Cancelled),
      (lambda client: client.server_info(), attnd.ResourceExhausted)), 1):
    asyncio.run(asyncio.wait_for(by_asyncio(call, kind, count), 60))
  assert len(servicer.times) == 3


def test_a_cancelled_task_stays_cancelled_when_the_client_closes(scripted):
  servicer, address = scripted([HANGS])

  async def by_asyncio():
    async with attnd.AsyncClient(address, timeout=None) as client:
      task = asyncio.create_task(client.server_info())
      while not servicer.times:
        await asyncio.sleep(0.01)
      task.cancel()
    with pytest.raises(asyncio.CancelledError):
      await task

  asyncio.run(by_asyncio())


@pytest.mark.parametrize('forever', [None, math.inf, 1e300, 10**400])
def test_without_a_deadline(scripted, ask, forever):
  """Either the client's timeout or the call's, which overrides the client's."""
  for settings, call in (
      ({'timeout': forever}, lambda client: client.server_info()),
      ({'timeout': 0.2}, lambda client: client.server_info(timeout=forever)),
      ({'timeout': 0.2}, lambda client: client.benchmark(
          timeout=forever, num_vectors=1))):
    # This time is longer than the client's deadline. The deadline of the call
    # overrides it.
    servicer, address = scripted([full_for(0.3)])
    ask(address, call, **settings)
    assert len(servicer.times) == 2


@pytest.mark.parametrize('timeout, kind', [
    (0, ValueError), (-1, ValueError), (-math.inf, ValueError),
    (-10**400, ValueError), (math.nan, ValueError), ('5', TypeError),
    (True, TypeError)])
def test_what_is_no_timeout(ask, timeout, kind):
  with pytest.raises(kind, match='timeout: expected .*None for no deadline'):
    ask('127.0.0.1:1', timeout=timeout)
  with pytest.raises(kind, match='timeout: expected .*None for no deadline'):
    ask('127.0.0.1:1', lambda client: client.server_info(timeout=timeout))


def test_the_policy_is_that_of_the_service_config():
  (method,) = clients.default_service_config()['methodConfig']
  published, own = method['retryPolicy'], attnd.RetryPolicy()
  assert method['name'] == [{'service': pb.DESCRIPTOR.package +
                             '.AttentionService'}]
  assert published['initialBackoff'] == f'{own.initial_backoff:g}s'
  assert published['maxBackoff'] == f'{own.max_backoff:g}s'
  assert published['backoffMultiplier'] == own.multiplier
  assert published['retryableStatusCodes'] == ['UNAVAILABLE',
                                               'RESOURCE_EXHAUSTED']


def for_all_methods(**config):
  return {'methodConfig': [{'name': [{}], **config}]}


@pytest.mark.parametrize('written', [dict, json.dumps])
def test_a_service_config_of_the_user(scripted, ask, written):
  """gRPC follows its retryPolicy, within an attempt of the client."""
  aborted = (grpc.StatusCode.ABORTED, None)
  servicer, address = scripted([aborted, aborted])
  config = for_all_methods(retryPolicy={
      'maxAttempts': 4, 'initialBackoff': '0.01s', 'maxBackoff': '0.01s',
      'backoffMultiplier': 1, 'retryableStatusCodes': ['ABORTED']})
  assert ask(address, service_config=written(config)).threads == 7
  assert len(servicer.times) == 3
  _, address = scripted([HANGS])
  with pytest.raises(attnd.DeadlineExceeded):
    ask(address, service_config=written(for_all_methods(timeout='0.2s')))


@pytest.mark.parametrize('config', ['nonsense', '[]', 5, b'{}', {1}])
def test_what_is_no_service_config(config):
  for kind in (attnd.Client, attnd.AsyncClient):
    with pytest.raises(ValueError, match='service_config: expected a dict'):
      kind(service_config=config)


def test_channel_options_of_the_user(scripted, ask):
  _, address = scripted([])
  with pytest.raises(attnd.ResourceExhausted, match='larger than max'):
    ask(address,
        channel_options=[('grpc.max_receive_message_length', 1)])


@pytest.mark.parametrize('wrong', [
    {'max_attempts': 0}, {'max_attempts': 1.5}, {'max_attempts': '3'},
    {'initial_backoff': 0}, {'initial_backoff': math.nan},
    {'max_backoff': -1}, {'max_backoff': math.inf}, {'multiplier': 0.5},
    {'multiplier': None}], ids=str)
def test_what_is_no_policy(wrong):
  (name,) = wrong
  with pytest.raises(ValueError, match=f'^{name}: expected '):
    attnd.RetryPolicy(**wrong)


def test_what_is_no_retry():
  for kind in (attnd.Client, attnd.AsyncClient):
    with pytest.raises(TypeError, match='retry: expected an attnd.RetryPolicy'):
      kind(retry=None)


def test_a_wait_cannot_overflow():
  from attnd.retry import Attempts
  attempts = Attempts(attnd.RetryPolicy(multiplier=1e9), None)
  error = attnd.Unavailable(grpc.StatusCode.UNAVAILABLE, '')
  assert all(attempts.delay_after(error) <= 2 for _ in range(100))


def test_waits_spread_and_grow():
  from attnd.retry import Attempts
  policy = attnd.RetryPolicy(max_attempts=9, initial_backoff=1, max_backoff=4)
  error = attnd.Unavailable(grpc.StatusCode.UNAVAILABLE, '')
  waits = []
  for _ in range(200):
    attempts = Attempts(policy, 1e6)
    waits.append([attempts.delay_after(error) for _ in range(5)])
  tops = np.max(waits, axis=0)
  assert (tops <= [1, 2, 4, 4, 4]).all() and (tops > [0.5, 1, 2, 2, 2]).all()
  assert len(set(np.ravel(waits))) == 1000


def test_a_full_attnd_is_waited_for(attnd_binary):
  """Its only slot is taken by a call that ends at its own deadline."""
  endless = np.ones((16, 262144, 1), np.float32)
  small = np.ones((1, 1), np.float32)
  never = attnd.RetryPolicy(max_attempts=1)
  patient = attnd.RetryPolicy(max_attempts=10**6, max_backoff=0.1)
  with Server(attnd_binary, '--max-in-flight=1') as server:
    with attnd.Client(server.tcp, retry=never) as client:

      def take_the_slot():
        # This waits, because a check can occupy the slot when the call arrives.
        with attnd.Client(server.tcp, retry=patient, timeout=5) as first:
          with pytest.raises(attnd.DeadlineExceeded):
            first.self_attention(endless)

      holder = threading.Thread(target=take_the_slot)
      holder.start()
      try:
        refused = None
        while refused is None and holder.is_alive():
          try:
            client.self_attention(small)
          except attnd.ResourceExhausted as error:
            refused = error
        assert refused and refused.reason == 'TOO_MANY_REQUESTS'
        assert refused.retry_delay is not None
        with attnd.Client(server.tcp, retry=patient) as other:
          assert other.self_attention(small).output == small
      finally:
        holder.join()
