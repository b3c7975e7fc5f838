"""A call whose client no longer waits stops computing and returns what it
held. The tests use a server with one slot, and calls that would compute for
minutes."""

import time

import grpc
import pytest

from support import work
from support.client import Client
from support.server import Server, open_channel


@pytest.fixture(scope='module')
def server(attnd):
  with Server(attnd, '--max-in-flight=1') as running:
    yield running


@pytest.fixture
def endless(server, stubs, client):
  """endless() occupies the slot with a call that does not end, on a separate
  connection."""
  with open_channel(server.tcp) as channel:
    own = Client(stubs, channel)
    request = work.endless_request(own)
    yield lambda **how: work.hold_slot(
        client, lambda: own.stub.SelfAttention.future(request, **how))


def test_one_slot_refuses_with_advice_to_retry(client, endless):
  call = endless()
  refusal = work.refusal_of(client)
  assert refusal.code == grpc.StatusCode.RESOURCE_EXHAUSTED
  assert refusal.retry_info is not None
  call.cancel()
  work.wait_until_free(client)


def test_cancel_frees_the_server(client, endless):
  call = endless()
  call.cancel()
  work.wait_until_free(client)
  assert call.code() == grpc.StatusCode.CANCELLED


def test_deadline_frees_the_server(client, endless):
  call = endless(timeout=5)
  assert call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
  work.wait_until_free(client)


def test_a_lost_connection_frees_the_server(client, server, stubs):
  with open_channel(server.tcp) as channel:
    own = Client(stubs, channel)
    call = work.hold_slot(client, lambda: own.stub.SelfAttention.future(
        work.endless_request(own)))
    assert not call.done()
  work.wait_until_free(client)


def test_an_expired_call_never_starts(client, server, stubs):
  start = time.monotonic()
  with open_channel(server.tcp) as channel:
    own = Client(stubs, channel)
    call = own.stub.SelfAttention.future(
        work.endless_request(own), timeout=0.001)
    assert call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
  work.wait_until_free(client)
  assert time.monotonic() - start < work.AT_ONCE_SECONDS
