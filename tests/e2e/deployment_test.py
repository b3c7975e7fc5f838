"""Tests what attnctl estimate says about a deployment with real servers."""

import json
import queue
import subprocess
import threading

import grpc
import numpy as np
import pytest

from support.client import Client, Refusal
from support.problems import normal
from support.server import Server, clean_environment, open_channel

MIB = 1 << 20
CALLS = 6
HEADS, LENGTH, DIMENSIONS = 4, 1536, 128


@pytest.fixture
def estimate(build_dir):

  def run(*flags):
    """Returns the JSON of attnctl estimate."""
    done = subprocess.run(
        [str(build_dir / 'client' / 'attnctl'), 'estimate', '--json', *flags],
        env=clean_environment(), capture_output=True, text=True, timeout=300,
        check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)

  return run


def problem(transport):
  return ['--offline', f'--seq-len={LENGTH}', f'--num-q-heads={HEADS}',
          f'--dimensions={DIMENSIONS}', '--threads=2',
          f'--concurrency={CALLS}', f'--transport={transport}']


def refusals_of_streams(address, stubs, request):
  """Begins CALLS streams, which hold their memory until their tensors have
  arrived, and returns the refusals of those that the server does not admit."""
  refusals = []
  calls = []  # gRPC cancels a call that nothing refers to
  with open_channel(address) as channel:
    client = Client(stubs, channel)
    for _ in range(CALLS):
      sent = queue.Queue()
      sent.put(next(client.messages(request, MIB)))
      call = client.stub.AttentionStream(iter(sent.get, None), timeout=300)
      calls.append((call, sent))
      try:
        next(call)
      except grpc.RpcError as error:
        refusals.append(Refusal(error))
    for _, sent in calls:
      sent.put(None)
  return refusals


def test_the_limits_hold_the_calls_and_a_mib_less_does_not(
    attnd, stubs, client, rng, estimate):
  peak = estimate(*problem('stream'))['peak_bytes']
  limits = estimate(*problem('stream'), '--limits')
  budget = limits['memory_budget_bytes']
  # Of a limit up to 1 GiB, half is the budget.
  assert limits['memory_bytes'] == 2 * budget < 1024 * MIB
  smaller = budget - MIB // 2
  assert smaller < peak <= budget
  request = client.request(
      *(normal(rng, HEADS, LENGTH, DIMENSIONS) for _ in range(3)))
  for server_budget, refused in ((budget, 0), (smaller, 1)):
    with Server(attnd, '--threads=2',
                f'--max-in-flight={limits["max_in_flight"]}',
                f'--max-message-bytes={limits["max_message_bytes"]}',
                f'--memory-budget-bytes={server_budget}') as server:
      refusals = refusals_of_streams(server.tcp, stubs, request)
      assert [r.reason for r in refusals] == refused * ['MEMORY_BUDGET']


def test_the_limits_hold_calls_that_arrive_together(attnd, stubs, client, rng,
                                                    estimate):
  limits = estimate(*problem('inline'), '--limits')
  tensors = [normal(rng, HEADS, LENGTH, DIMENSIONS) for _ in range(3)]
  request = client.request(*tensors)
  expected = client.array(client.stub.Attention(request, timeout=300).output)
  with Server(attnd, '--threads=2',
              f'--max-in-flight={limits["max_in_flight"]}',
              f'--max-message-bytes={limits["max_message_bytes"]}',
              f'--memory-budget-bytes={limits["memory_budget_bytes"]}') as server:
    start = threading.Barrier(CALLS)
    answers = []

    def call():
      with open_channel(server.tcp) as channel:
        caller = Client(stubs, channel)
        start.wait()
        answers.append(caller.array(
            caller.stub.Attention(request, timeout=300).output))

    callers = [threading.Thread(target=call) for _ in range(CALLS)]
    for caller in callers:
      caller.start()
    for caller in callers:
      caller.join()
  assert len(answers) == CALLS
  assert all(np.array_equal(answer, expected) for answer in answers)


RATES = {
    'inline': ['--num-kv-heads=2', '--return-lse', '--causal=bottom-right'],
    'stream': ['--transport=stream', '--dtype=f16', '--output-dtype=f32'],
    'shared memory': ['--transport=shared-memory', '--bias-shape=4,256,256',
                      '--mask-shape=256,256', '--layout=bshd'],
    'ragged': ['--cu-seqlens-q=0,100,256', '--cu-seqlens-k=0,200,256'],
}


@pytest.mark.parametrize('name', RATES)
def test_a_rate_is_measured_with_real_calls(attnd, estimate, tmp_path, name):
  shm_socket = tmp_path / 'shm.sock'
  flags = ['--seq-len=256', '--num-q-heads=4', *RATES[name]]
  if name == 'shared memory':
    flags.append(f'--shm-socket={shm_socket}')
  with Server(attnd, '--threads=2', f'--shm-socket={shm_socket}') as server:
    plan = estimate(f'--server={server.tcp}', '--rate=1', '--p99-ms=1e6',
                    *flags)
  assert plan['source'].startswith('measured: ')
  assert plan['processors_per_pod'] == 2
  assert plan['saturation_rate'] > 1
  assert (plan['pods'], plan['bound']) == (1, 'processors')
  assert plan['utilization'] == pytest.approx(1 / plan['saturation_rate'])
  assert plan['mean_ms'] >= plan['call_alone_ms']


def test_a_rate_is_computed_from_the_benchmark_of_a_server(
    attnd, build_dir, estimate, tmp_path):
  with Server(attnd, '--threads=2') as server:
    bench = subprocess.run(
        [str(build_dir / 'client' / 'attnctl'), 'bench', '--json',
         f'--server={server.tcp}', '--num-vectors=512', '--threads=1',
         '--repetitions=1', '--dtype=bf16'],
        env=clean_environment(), capture_output=True, text=True, timeout=300,
        check=True)
  path = tmp_path / 'bench.json'
  path.write_text(bench.stdout)
  plan = estimate('--offline', '--seq-len=256', '--dtype=bf16', '--rate=1',
                  '--p99-ms=1e6', f'--bench={path}')
  assert plan['processors_per_pod'] == 1
  assert plan['pods'] == 1
