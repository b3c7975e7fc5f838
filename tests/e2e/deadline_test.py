"""A call that could not end before its deadline is refused at once, and one
that could is computed."""

import grpc
import numpy as np
import pytest

from support import work
from support.client import Client, Refusal
from support.server import Server, open_channel, poll_until

# A call of TRIED_SECONDS is in the server until its deadline is over. Then
# there would be no time left for one of LATER_SECONDS. All of these differ by
# so much that a busy machine does not change the outcome.
TRIED_SECONDS = 60
TRIED_DEADLINE = 12
LATER_SECONDS = 3
LATER_DEADLINE = 13
SHORT_DEADLINE = 0.5


@pytest.fixture(scope='module')
def server(attnd):
  with Server(attnd) as running:
    yield running


def busy_threads(client):
  info = client.stub.GetServerInfo(client.pb.GetServerInfoRequest())
  return info.load.busy_threads


def wait_until_idle(client):
  poll_until(lambda: busy_threads(client) == 0, 60, 'idle workers')


@pytest.fixture
def busy(server, stubs, client):
  """Keeps the server busy with a call until its deadline, and gives that
  call."""
  rows = work.rows_for(client, TRIED_SECONDS)
  with open_channel(server.tcp) as channel:
    own = Client(stubs, channel)
    call = own.stub.SelfAttention.future(
        own.self_request(np.ones((1, rows, 1), np.float32)),
        timeout=TRIED_DEADLINE)
    poll_until(lambda: busy_threads(client) > 0, 60, 'a call that is computed')
    yield call
    call.cancel()
    wait_until_idle(client)


def refusal(client, request, timeout):
  with pytest.raises(grpc.RpcError) as error:
    client.stub.SelfAttention(request, timeout=timeout)
  return Refusal(error.value)


@pytest.fixture(scope='module')
def later(client):
  rows = work.rows_for(client, LATER_SECONDS)
  return client.self_request(np.ones((1, rows, 1), np.float32))


def test_refused_while_busy_and_computed_when_idle(client, later, busy):
  refused = refusal(client, later, LATER_DEADLINE)
  # The server did not wait for the other call.
  assert not busy.done()
  assert refused.code == grpc.StatusCode.RESOURCE_EXHAUSTED
  assert refused.reason == 'DEADLINE_UNREACHABLE'
  assert refused.retry_info is not None
  assert 'deadline' in refused.message
  assert refused.message.endswith('; try again later, or at another server')
  busy.cancel()
  wait_until_idle(client)
  client.stub.SelfAttention(later, timeout=LATER_DEADLINE)


def test_a_call_that_is_too_large_need_not_try_again(client, later, busy):
  refused = refusal(client, later, SHORT_DEADLINE)
  assert refused.reason == 'DEADLINE_UNREACHABLE'
  assert refused.retry_info is None


def test_a_call_without_a_deadline_is_not_refused(client, busy):
  client.stub.SelfAttention(work.small_request(client))
  rows = work.rows_for(client, 0.2)
  client.stub.SelfAttention(
      client.self_request(np.ones((1, rows, 1), np.float32)))
