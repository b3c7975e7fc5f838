"""Tests /metrics: the list in docs/metrics.md, that the counters agree with what
clients counted, and that clients cannot add time series."""

import collections
import concurrent.futures
import contextlib
import re
import threading
import urllib.request

import grpc
import numpy as np
import pytest

from support import http2, shared_memory, work
from support.certificates import server_flags
from support.client import Client, Refusal
from support.server import Server, open_channel, poll_until
from support.stubs import REPOSITORY

LIST = REPOSITORY / 'docs' / 'metrics.md'
SAMPLE = re.compile(r'(\w+)(?:\{(.*)\})? (\S+)')
LABEL = re.compile(r'(\w+)="([^"]*)"')


class Scrape:
  """The text of /metrics, parsed.

  families: for each name, (type, help). samples: for each (name, labels), the
  number. The labels are a frozenset of pairs.
  """

  def __init__(self, text):
    self.text = text
    self.families, self.samples = {}, {}
    helps = {}
    for line in text.splitlines():
      if line.startswith('# HELP '):
        _, _, name, what = line.split(' ', 3)
        helps[name] = what
      elif line.startswith('# TYPE '):
        _, _, name, kind = line.split(' ')
        self.families[name] = (kind, helps[name])
      elif line:
        name, labels, value = SAMPLE.fullmatch(line).groups()
        key = name, frozenset(LABEL.findall(labels or ''))
        assert key not in self.samples, line
        self.samples[key] = float(value)

  def value(self, name, **labels):
    return self.samples.get((name, frozenset(labels.items())), 0)

  def family_of(self, sample):
    """Returns the name of the family that has the sample of this name."""
    return (sample if sample in self.families
            else re.sub(r'_(bucket|sum|count)$', '', sample))

  def labels(self, family):
    """Returns the values of each label of the family."""
    values = collections.defaultdict(list)
    for name, labels in self.samples:
      if self.family_of(name) == family:
        for label, value in labels:
          values[label].append(value)
    return values


def scrape(server):
  with urllib.request.urlopen(f'http://{server.admin}/metrics',
                              timeout=60) as answer:
    assert answer.headers['Content-Type'] == (
        'text/plain; version=0.0.4; charset=utf-8')
    return Scrape(answer.read().decode())


@pytest.fixture
def server(attnd):
  """A server of its own for each test, because the counters start at 0."""
  with Server(attnd, admin='127.0.0.1:0') as running:
    yield running


def rows(page, first):
  """Returns the cells of the rows of the table whose first column is `first`."""
  table = page[page.index(f'| {first} |'):].split('\n\n')[0]
  return [[cell.strip() for cell in row.strip('|').split(' | ')]
          for row in table.splitlines()[2:]]


def test_the_metrics_are_those_of_the_list(attnd, tmp_path):
  page = LIST.read_text()
  flags, _ = server_flags(tmp_path)
  with Server(attnd, *flags, admin='127.0.0.1:0') as server:
    got = scrape(server)
  listed = {}
  for name, kind, labels, meaning in rows(page, 'name'):
    listed[name.strip('`')] = (kind, meaning, set(re.findall(r'`(\w+)`', labels)))
  assert {name: (kind, meaning, set(got.labels(name)) - {'le'})
          for name, (kind, meaning) in got.families.items()} == listed

  (buckets,) = re.findall(r'\(`le`\), in seconds:\n(.*)\.\n', page)
  for name, (kind, _) in got.families.items():
    if kind == 'histogram':
      assert list(dict.fromkeys(got.labels(name)['le'])) == buckets.split(', ')

  values = {label.strip('`'): re.findall(r'`(\w+)`', text.split('. Only')[0])
            for label, text in rows(page, 'label')}
  assert set(got.labels('attnd_calls_total')['method']) == set(values['method'])
  assert set(got.labels('attnd_call_seconds')['method']) == set(
      values['method'][:5])
  assert set(got.labels('attnd_failed_calls_total')['reason']) == set(
      values['reason'])
  assert set(got.labels('attnd_sent_bytes_total')['transport']) == {
      'inline', 'stream', 'shared_memory'}
  assert len(got.samples) <= 300


class Counted:
  """What clients count. Thread-safe."""

  def __init__(self):
    self._lock = threading.Lock()
    self.codes = collections.Counter()
    self.reasons = collections.Counter()
    self.flops = 0

  def add(self, method, code, reason=None, flops=0):
    with self._lock:
      self.codes[method, code] += 1
      self.flops += flops
      if reason is not None:
        self.reasons[reason] += 1

  def call(self, method, run):
    """Runs a call and counts it. Returns its answer, or None."""
    try:
      answer = run()
    except grpc.RpcError as error:
      self.add(method, error.code().name, Refusal(error).reason)
      return None
    stats = getattr(answer, 'stats', None)
    self.add(method, 'OK', flops=stats.flops if stats else 0)
    return answer


def totals(got):
  """Returns the codes and the reasons of a scrape as Counted has them."""
  codes, reasons = collections.Counter(), collections.Counter()
  for (name, labels), value in got.samples.items():
    labels = dict(labels)
    if name == 'attnd_calls_total':
      codes[labels['method'], labels['code']] = value
    elif name == 'attnd_failed_calls_total':
      reasons[labels['reason']] = value
  return +codes, +reasons


def test_the_counters_agree_with_the_clients(attnd, stubs, rng):
  """Six callers make calls that succeed, are wrong, or are refused, and then one
  makes calls that are cancelled or late."""
  with Server(attnd, '--max-in-flight=2', admin='127.0.0.1:0') as server:
    counted = Counted()
    q = rng.standard_normal((4, 128, 32)).astype(np.float32)

    def caller(number):
      with open_channel(server.tcp if number % 2 else server.unix) as channel:
        client = Client(stubs, channel)
        good = client.request(q, q, q)
        wrong = client.request(q, q[:, :, :8], q)
        self_good = client.self_request(q[0])
        for _ in range(60):
          counted.call('Attention', lambda: client.stub.Attention(good))
          counted.call('Attention', lambda: client.stub.Attention(wrong))
          counted.call('SelfAttention',
                       lambda: client.stub.SelfAttention(self_good))
          counted.call('AttentionStream', lambda: client.stream(good))
          counted.call('MemoryEstimate', lambda: client.stub.MemoryEstimate(
              client.pb.MemoryEstimateRequest(seq_len=10, num_q_heads=1)))
          counted.call('GetServerInfo', lambda: client.stub.GetServerInfo(
              client.pb.GetServerInfoRequest()))

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
      list(pool.map(caller, range(6)))
    assert counted.codes['Attention', 'OK'] > 0
    assert counted.reasons['TOO_MANY_REQUESTS'] > 0

    with open_channel(server.tcp) as channel:
      client = Client(stubs, channel)
      endless = work.endless_request(client)
      for _ in range(3):
        future = client.stub.SelfAttention.future(endless)
        poll_until(lambda: scrape(server).value('attnd_slots') == 1, 60,
                   'the call in its slot')
        assert not future.done()
        future.cancel()
        counted.add('SelfAttention', 'CANCELLED', 'CANCELLED')
        poll_until(lambda: scrape(server).value('attnd_slots') == 0, 60,
                   'the slot given back')
      late = 3
      for _ in range(late):
        # Otherwise the server could refuse the call before it is late.
        poll_until(lambda: scrape(server).value('attnd_busy_workers') == 0, 60,
                   'workers without a call')
        with pytest.raises(grpc.RpcError) as caught:
          client.stub.SelfAttention(endless, timeout=0.3)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED

    expected = sum(counted.codes.values()) + late

    def settled():
      got = scrape(server)
      return got if sum(totals(got)[0].values()) >= expected else None

    got = poll_until(settled, 60, f'{expected} calls counted')
    codes, reasons = totals(got)
    # A late call counts under one of two codes (docs/metrics.md).
    lates = {'DEADLINE_EXCEEDED': codes.pop(
                 ('SelfAttention', 'DEADLINE_EXCEEDED'), 0),
             'CANCELLED': codes['SelfAttention', 'CANCELLED'] - 3}
    codes['SelfAttention', 'CANCELLED'] = 3
    assert sum(lates.values()) == late and min(lates.values()) >= 0
    for name, number in lates.items():
      reasons[name] -= number
    assert codes == counted.codes
    assert +reasons == counted.reasons
    assert got.value('attnd_floating_point_operations_total') == counted.flops
    for method in ('Attention', 'SelfAttention', 'AttentionStream'):
      assert got.value('attnd_call_seconds_count', method=method) == (
          counted.codes[method, 'OK'])
    assert got.value('attnd_slots') == 0


def test_bytes_count_by_transport(attnd, stubs, tmp_path, rng):
  path = tmp_path / 'shm.sock'
  with Server(attnd, f'--shm-socket={path}', admin='127.0.0.1:0') as server:
    with open_channel(server.tcp) as channel, contextlib.ExitStack() as stack:
      client = Client(stubs, channel)
      q = rng.standard_normal((2, 64, 16)).astype(np.float32)
      request = client.request(q, q, q)
      answer = client.stub.Attention(request)
      streamed_in = list(client.messages(request))
      streamed_out = list(client.stub.AttentionStream(iter(streamed_in)))
      got = scrape(server)
      for name, inline, stream in (
          ('received', [request], streamed_in),
          ('sent', [answer], streamed_out)):
        for transport, messages in (('inline', inline), ('stream', stream)):
          assert got.value(f'attnd_{name}_bytes_total',
                           transport=transport) == sum(
                               m.ByteSize() for m in messages), transport
        assert got.value(f'attnd_{name}_bytes_total',
                         transport='shared_memory') == 0

      region = stack.enter_context(shared_memory.Region(path, 1 << 20))
      shared = shared_memory.request_of(client, region, q, q, q, gap=1 << 16)
      client.stub.Attention(shared)
      got = scrape(server)
      assert got.value('attnd_received_bytes_total',
                       transport='shared_memory') == 3 * q.nbytes
      assert got.value('attnd_sent_bytes_total',
                       transport='shared_memory') == q.nbytes


def test_a_call_that_its_client_ends_within_the_message_is_cancelled(server):
  """It is not malformed: a deadline can pass while a message arrives."""
  with http2.Connection(server.tcp) as connection:
    for stream in (1, 3, 5):
      connection.begin_call('/attnd.v1.AttentionService/SelfAttention', 1000,
                            stream)
      connection.send_data(bytes(10), stream)
    for stream in (1, 3):
      connection.send(http2.frame(http2.RST_STREAM, (8).to_bytes(4, 'big'),
                                  stream=stream))
    connection.end(5)
    connection.take_until(lambda: 5 in connection.ended, 60, 'an answer')

    def counted(code):
      return scrape(server).value('attnd_calls_total', code=code,
                                  method='SelfAttention')

    poll_until(lambda: counted('INVALID_ARGUMENT') == 1, 60, 'a malformed call')
    poll_until(lambda: counted('CANCELLED') == 2, 60, 'two cancelled calls')
    got = scrape(server)
    assert got.value('attnd_failed_calls_total', reason='CANCELLED') == 2
    assert got.value('attnd_failed_calls_total', reason='MALFORMED_MESSAGE') == 1


def test_clients_cannot_add_series(server):
  before = scrape(server)
  with open_channel(server.tcp) as channel:
    pending = []
    for i in range(10_000):
      name = f'/attnd.v1.AttentionService/Method{i}'
      call = channel.unary_unary(name if i % 2 else f'/service{i}/Attention')
      pending.append(call.future(b'', metadata=[(f'name-{i % 50}', f'v{i}')]))
      if len(pending) == 100:
        for future in pending:
          assert future.code() == grpc.StatusCode.UNIMPLEMENTED
        pending.clear()
  after = scrape(server)
  assert len(set(after.samples) - set(before.samples)) <= 1
  assert 'Method1' not in after.text and 'service2' not in after.text


def waits(server, stubs, callers, request, calls):
  """Returns the mean wait and the mean computation while `callers` clients call
  back to back, each `calls` times."""
  before = scrape(server)

  def caller(_):
    with open_channel(server.unix) as channel:
      client = Client(stubs, channel)
      for _ in range(calls):
        client.stub.Attention(request)

  with concurrent.futures.ThreadPoolExecutor(callers) as pool:
    list(pool.map(caller, range(callers)))
  after = scrape(server)

  def mean(name):
    grown = lambda part: (after.value(f'attnd_{name}_seconds_{part}') -
                          before.value(f'attnd_{name}_seconds_{part}'))
    assert grown('count') == callers * calls
    return grown('sum') / grown('count')

  return mean('queue'), mean('compute')


def test_the_wait_shows_whether_more_servers_would_help(attnd, stubs, rng):
  """Processor use is about 100 % with one caller as well as with four. The wait
  tells them apart, so a HorizontalPodAutoscaler can use it."""
  with Server(attnd, '--threads=2', admin='127.0.0.1:0') as server:
    with open_channel(server.unix) as channel:
      client = Client(stubs, channel)
      q = rng.standard_normal((8, 1536, 64)).astype(np.float32)
      request = client.request(q, q, q)
      client.stub.Attention(request)
      queue, compute = waits(server, stubs, 1, request, 20)
      print(f'one caller: waits {queue:.4f} s, computes {compute:.4f} s')
      assert queue < 0.05 * compute
      queue, compute = waits(server, stubs, 4, request, 10)
      print(f'four callers: wait {queue:.4f} s, compute {compute:.4f} s')
      assert queue > compute
