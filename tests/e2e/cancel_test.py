"""A call that nobody waits for any more stops computing and gives back what
it held: shown with one slot, held by work of minutes."""

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
def endless(server, stubs):
  """Starts endless work on a connection of its own."""
  with open_channel(server.tcp) as channel:
    client = Client(stubs, channel)
    yield lambda **how: client.stub.SelfAttention.future(
        work.endless_request(client), **how)


def test_one_slot_refuses_with_advice_to_retry(client, endless):
  call = endless()
  refusal = work.wait_until_taken(client)
  assert refusal.code == grpc.StatusCode.RESOURCE_EXHAUSTED
  assert refusal.retry_info is not None
  call.cancel()
  work.wait_until_free(client)


def test_cancel_frees_the_server(client, endless):
  call = endless()
  work.wait_until_taken(client)
  call.cancel()
  work.wait_until_free(client)
  assert call.code() == grpc.StatusCode.CANCELLED


def test_deadline_frees_the_server(client, endless):
  call = endless(timeout=3)
  work.wait_until_taken(client)
  assert call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
  work.wait_until_free(client)


def test_a_lost_connection_frees_the_server(client, server, stubs):
  with open_channel(server.unix) as channel:
    own = Client(stubs, channel)
    own.stub.SelfAttention.future(work.endless_request(own))
    work.wait_until_taken(client)
  work.wait_until_free(client)


def test_an_expired_call_never_starts(client, endless):
  start = time.monotonic()
  call = endless(timeout=0.001)
  assert call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
  work.wait_until_free(client)
  assert time.monotonic() - start < work.AT_ONCE_SECONDS
