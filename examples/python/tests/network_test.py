"""Both clients while the network or the server fails. The servers are real; they
end and come back."""

import asyncio
import concurrent.futures
import contextlib
import itertools
import os
import pathlib
import random
import signal
import socket
import threading
import time

import attnd
import numpy as np
import pytest

from support.server import Server, poll_until

# Takes seconds on a few threads, so that a server can end during the call.
HEAVY = np.ones((4, 16384, 1), np.float32)
SMALL = np.ones((1, 1), np.float32)


def free_address():
  """An address on loopback, which a server keeps when it is started again."""
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
  """calling(address, call, ...) returns call(client) for one of the clients,
  which gets the other arguments."""

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
  """Calls of each kind that run when the server dies, and one that begins before
  it is back."""

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
    # Most calls arrive in this time. Calls that do not arrive have to succeed,
    # too.
    time.sleep(0.5)
    server.kill()
    calls.append(pool.submit(client.server_info))
    time.sleep(3)
    server.start()
    for result in [call.result() for call in calls[:2]] + pair.result():
      # Each row of the answer is the mean of rows of ones.
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
  # The client gives up if the next pause would end after the deadline.
  assert time.monotonic() - start > 3 - attnd.RetryPolicy().max_backoff
  assert 'refused' in caught.value.message
  tried = int(caught.value.message.rpartition('(tried ')[2].split()[0])
  assert 2 < tried < 100


@contextlib.contextmanager
def bad_road(address, dropped, delay):
  """A relay to a TCP server. It closes the first `dropped` connections, and
  begins each later one `delay` seconds late."""
  host, port = address.split(':')

  def pipe(source, sink):
    with contextlib.suppress(OSError):
      while data := source.recv(1 << 16):
        sink.sendall(data)
    with contextlib.suppress(OSError):
      sink.shutdown(socket.SHUT_WR)

  def lead():
    for number in itertools.count():
      try:
        client, _ = listener.accept()
      except OSError:  # the end of the test
        return
      if number < dropped:
        client.close()
        continue
      time.sleep(delay)
      server = socket.create_connection((host, port))
      ends.extend((client, server))
      for pair in ((client, server), (server, client)):
        threading.Thread(target=pipe, args=pair, daemon=True).start()

  ends = []
  with socket.create_server(('127.0.0.1', 0)) as listener:
    leading = threading.Thread(target=lead)
    leading.start()
    try:
      yield f'127.0.0.1:{listener.getsockname()[1]}'
    finally:
      listener.shutdown(socket.SHUT_RDWR)
      leading.join()
      for end in ends:
        end.close()


def test_a_server_that_is_back_is_found_soon(server, calling):
  """By default, gRPC's pauses between seven attempts to connect add up to 43 s."""
  with bad_road(server.tcp, dropped=7, delay=0) as address:
    assert calling(address, lambda client: client.server_info(),
                   timeout=30).threads


def test_a_server_that_is_slow_to_answer_is_reached_at_once(server, calling):
  with bad_road(server.tcp, dropped=0, delay=0.4) as address:
    assert calling(address, lambda client: client.server_info(),
                   retry=attnd.RetryPolicy(max_attempts=1)).threads


def suspend(pid):
  """Returns once no thread of the process runs any more."""

  def stopped():
    try:
      return all(
          (task / 'stat').read_text().rpartition(')')[2].split()[0] == 'T'
          for task in pathlib.Path(f'/proc/{pid}/task').iterdir())
    except OSError:  # a thread has just ended
      return False

  os.kill(pid, signal.SIGSTOP)
  poll_until(stopped, 60, 'the stop of every thread')


def test_a_server_that_hangs_is_noticed_without_a_deadline(
    attnd_binary, calling, monkeypatch):
  """The server answers no ping. A minute of the client's is a second here."""
  options = attnd.clients._CHANNEL_OPTIONS
  for name, value in options.items():
    if 'keepalive' in name or 'ping_timeout' in name:
      monkeypatch.setitem(options, name, value // 60)

  def sync(client, pid):
    client.server_info()
    suspend(pid)
    client.server_info()

  async def by_asyncio(client, pid):
    await client.server_info()
    suspend(pid)
    await client.server_info()

  with Server(attnd_binary) as hanging:
    try:
      with pytest.raises(attnd.Unavailable):
        calling(hanging.tcp,
                lambda client: (by_asyncio if isinstance(client,
                                                         attnd.AsyncClient)
                                else sync)(client, hanging.process.pid),
                timeout=None, retry=attnd.RetryPolicy(max_attempts=1))
    finally:
      os.kill(hanging.process.pid, signal.SIGCONT)


def test_round_robin(attnd_binary, calling):
  """Calls go to both servers; when one dies, to the other, without an error."""
  with (Server(attnd_binary, '--threads=1') as one,
        Server(attnd_binary, '--threads=2') as two):

    def kill_one():
      one.kill()
      one.forget()

    def sync(client):
      seen = set()
      # The channel uses an address only once it has connected to it.
      for _ in range(50000):
        seen.add(client.server_info().threads)
        if len(seen) == 2:
          break
      kill_one()
      return seen, {client.server_info().threads for _ in range(20)}

    async def by_asyncio(client):
      seen = set()
      for _ in range(50000):
        seen.add((await client.server_info()).threads)
        if len(seen) == 2:
          break
      kill_one()
      return seen, {(await client.server_info()).threads for _ in range(20)}

    both, left = calling(
        f'ipv4:{one.tcp},{two.tcp}',
        lambda client: (by_asyncio if isinstance(client, attnd.AsyncClient)
                        else sync)(client))
  assert both == {1, 2}
  assert left == {2}


PROXY_VARIABLES = [
    name for stem in ('http', 'https', 'grpc', 'all', 'no', 'no_grpc')
    for name in (f'{stem}_proxy', f'{stem}_proxy'.upper())
]


def test_no_proxy_of_the_environment(server, calling, monkeypatch):
  with socket.create_server(('127.0.0.1', 0)) as proxy:
    for name in PROXY_VARIABLES:
      if name.lower().startswith('no_'):
        monkeypatch.delenv(name, raising=False)
      else:
        monkeypatch.setenv(name, f'http://127.0.0.1:{proxy.getsockname()[1]}')
    for call in (lambda client: client.self_attention(SMALL),
                 lambda client: client.attention_stream(SMALL, SMALL, SMALL)):
      assert calling(server.tcp, call, timeout=10).output == SMALL
    proxy.setblocking(False)
    with pytest.raises(BlockingIOError):
      proxy.accept()
