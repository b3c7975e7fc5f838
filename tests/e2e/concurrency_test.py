"""With many callers at once, every answer is right and has the same bits as
with one caller."""

import concurrent.futures
import threading

import grpc
import numpy as np
import pytest

from support import reference
from support.client import Client
from support.server import Server, open_channel

CLIENTS = 64
CALLS_EACH = 4

# (batch, q_heads, kv_heads, q_len, kv_len, head_dim, v_head_dim)
SHAPES = [
    (1, 1, 1, 1, 1, 1, 1),
    (1, 8, 2, 1, 700, 64, 64),
    (2, 4, 4, 65, 65, 32, 32),
    (1, 2, 1, 130, 257, 40, 24),
    (3, 1, 1, 17, 33, 7, 5),
    (1, 1, 1, 300, 300, 128, 128),
]


def problem(rng, shape):
  batch, q_heads, kv_heads, q_len, kv_len, head_dim, v_head_dim = shape
  draw = lambda *s: rng.standard_normal(s).astype(np.float32)
  return (draw(batch, q_heads, q_len, head_dim),
          draw(batch, kv_heads, kv_len, head_dim),
          draw(batch, kv_heads, kv_len, v_head_dim))


def test_64_clients_with_mixed_shapes(server, stubs):
  rules = (reference.NONE, reference.TOP_LEFT, reference.BOTTOM_RIGHT)

  def run(index):
    rng = np.random.default_rng(index)
    address = server.unix if index % 2 else server.tcp
    with open_channel(address) as channel:
      client = Client(stubs, channel)
      for call in range(CALLS_EACH):
        shape = SHAPES[(index + call) % len(SHAPES)]
        causal = rules[(index // 2 + call) % len(rules)]
        tensors = problem(rng, shape)
        response = client.attention(*tensors, causal=causal, return_lse=True)
        output, lse = reference.attention(*tensors, causal=causal)
        bound = reference.error_bound(tensors[2])
        reference.assert_close(client.array(response.output), output, bound)
        reference.assert_close(client.array(response.lse), lse, bound)
    return CALLS_EACH

  with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
    assert sum(pool.map(run, range(CLIENTS))) == CLIENTS * CALLS_EACH


def answers(client, problems):
  """Returns the bytes of each answer."""
  return [(r.output.data, r.lse.data)
          for r in (client.attention(*p, return_lse=True) for p in problems)]


class Load:
  """Other callers, which are busy while the context is open."""

  def __init__(self, stubs, address, callers=3):
    self._stubs, self._address = stubs, address
    self._stop = threading.Event()
    self._all_busy = threading.Barrier(callers + 1)
    self._threads = [
        threading.Thread(target=self._run, args=(seed,))
        for seed in range(callers)
    ]

  def __enter__(self):
    for thread in self._threads:
      thread.start()
    self._all_busy.wait(timeout=120)
    return self

  def __exit__(self, *_):
    self._stop.set()
    for thread in self._threads:
      thread.join()

  def _run(self, seed):
    tensors = problem(np.random.default_rng(seed), (1, 4, 2, 500, 500, 64, 64))
    with open_channel(self._address) as channel:
      client = Client(self._stubs, channel)
      client.attention(*tensors)
      self._all_busy.wait(timeout=120)
      while not self._stop.is_set():
        client.attention(*tensors)


@pytest.fixture(scope='module')
def bits_of_one_thread(attnd, stubs):
  rng = np.random.default_rng(7)
  problems = [problem(rng, shape) for shape in SHAPES]
  with Server(attnd, '--threads=1') as server:
    with open_channel(server.tcp) as channel:
      return problems, answers(Client(stubs, channel), problems)


@pytest.mark.parametrize('threads', [1, 2, 3])
def test_same_bits_for_any_threads_load_and_transport(
    attnd, stubs, bits_of_one_thread, threads):
  problems, expected = bits_of_one_thread
  with Server(attnd, f'--threads={threads}') as server:
    with open_channel(server.tcp) as tcp, open_channel(server.unix) as unix:
      client = Client(stubs, tcp)
      info = client.stub.GetServerInfo(client.pb.GetServerInfoRequest())
      assert info.threads == threads
      assert answers(client, problems) == expected
      assert answers(Client(stubs, unix), problems) == expected
      with Load(stubs, server.tcp):
        assert answers(client, problems) == expected


def test_batch_neighbours_change_no_bit(client, rng):
  tensors = problem(rng, (3, 4, 2, 70, 130, 48, 48))
  together = client.array(client.attention(*tensors).output)
  for entry in range(3):
    alone = client.attention(*(t[entry:entry + 1] for t in tensors))
    assert np.array_equal(client.array(alone.output)[0], together[entry])


def test_too_many_in_flight_are_refused_at_once(attnd, stubs):
  with Server(attnd, '--max-in-flight=2') as server:
    with open_channel(server.tcp) as channel:
      client = Client(stubs, channel)
      sequence = np.ones((1, 4096, 1), np.float32)
      calls = [client.stub.SelfAttention.future(client.self_request(sequence))
               for _ in range(32)]
      codes = {call.code() for call in calls}
      assert grpc.StatusCode.OK in codes
      assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
      client.stub.SelfAttention(client.self_request(sequence), timeout=60)
