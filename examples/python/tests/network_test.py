"""Both clients where the network, or the server at its other end, fails them.
Real servers, which end and come back."""

import asyncio
import concurrent.futures
import random
import socket
import time

import attnd
import numpy as np
import pytest

from support.server import Server

# Seconds of work on a few threads, so that a server can end in the middle.
HEAVY = np.ones((4, 16384, 1), np.float32)


def free_address():
  """On loopback; a server that ends and comes back keeps it."""
  for _ in range(100):
    port = random.randrange(10000, 30000)
    with socket.socket() as probe:
      try:
        probe.bind(('127.0.0.1', port))
        return f'127.0.0.1:{port}'
      except OSError:
        pass
  raise OSError('no free port')


@pytest.fixture(params=['sync', 'asyncio'])
def calling(request):
  """calling(address, call, ...) is call(client), by one of the clients; what
  else it is given goes to the client."""

  def sync(address, call, **settings):
    with attnd.Client(address, **settings) as client:
      return call(client)

  async def by_asyncio(address, call, **settings):
    async with attnd.AsyncClient(address, **settings) as client:
      return await call(client)

  if request.param == 'sync':
    return sync
  return lambda *args, **settings: asyncio.run(by_asyncio(*args, **settings))


def test_calls_outlive_a_crash_of_the_server(attnd_binary):
  """One of each kind, in flight when the server dies or begun before it is
  back."""

  async def by_asyncio(address):
    async with attnd.AsyncClient(address, timeout=60) as client:
      return await asyncio.gather(
          client.self_attention(HEAVY),
          client.attention_stream(HEAVY, HEAVY, HEAVY))

  with (Server(attnd_binary, listen=free_address()) as server,
        attnd.Client(server.tcp, timeout=60) as client,
        concurrent.futures.ThreadPoolExecutor() as pool):
    calls = [pool.submit(client.self_attention, HEAVY),
             pool.submit(client.attention_stream, HEAVY, HEAVY, HEAVY)]
    pair = pool.submit(asyncio.run, by_asyncio(server.tcp))
    time.sleep(0.5)  # for them to arrive; they succeed in any case
    server.kill()
    calls.append(pool.submit(client.server_info))
    time.sleep(3)
    server.start()
    for result in [call.result() for call in calls[:2]] + pair.result():
      # Each row is the mean of rows of ones.
      np.testing.assert_allclose(result.output, HEAVY, rtol=1e-6)
    assert calls[2].result().threads


def test_a_call_outlives_a_drain_that_cuts_it(attnd_binary, calling):
  with (Server(attnd_binary, '--drain-timeout=0',
               listen=free_address()) as server,
        concurrent.futures.ThreadPoolExecutor() as pool):
    call = pool.submit(calling, server.tcp,
                       lambda client: client.self_attention(HEAVY), timeout=60)
    time.sleep(0.3)
    server.signal()
    server.wait()
    server.start()
    np.testing.assert_allclose(call.result().output, HEAVY, rtol=1e-6)


def test_where_nobody_listens(calling):
  start = time.monotonic()
  with pytest.raises(attnd.Unavailable, match=r'\(tried \d+ times') as caught:
    calling(free_address(), lambda client: client.server_info(), timeout=3)
  # Until the next pause would have passed the deadline.
  assert time.monotonic() - start > 3 - attnd.RetryPolicy().max_backoff
  assert 'refused' in caught.value.message
  tried = int(caught.value.message.rpartition('(tried ')[2].split()[0])
  assert 2 < tried < 100
