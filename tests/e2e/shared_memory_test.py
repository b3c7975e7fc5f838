"""Tests tensors in memory that client and server share. Good clients get right
answers, and bad clients do not harm the server."""

import contextlib
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import tempfile
import threading

import grpc
import numpy as np
import pytest

from support import problems, reference, shared_memory, work
from support.client import bf16
from support.server import Server, poll_until
from support.shared_memory import Connection, Refused, Region, memory

PEER = pathlib.Path(shared_memory.__file__).with_name('shared_memory_peer.py')
INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOBODY = '65534'
# Ids that no user or group of this machine should have.
SERVER_UID, APPLICATION_UID, SHARED_GROUP = 65532, '65531', '65530'


class ShmServer(Server):
  """A server with --shm-socket in its folder."""

  def __init__(self, binary, *flags, **how):
    super().__init__(binary, *flags, **how)
    self.shm_socket = self.folder / 'shm.sock'
    self._command.append(f'--shm-socket={self.shm_socket}')

  def mappings(self):
    """Returns how often the server has mapped memory of these tests."""
    maps = pathlib.Path(f'/proc/{self.process.pid}/maps').read_text()
    return maps.count('memfd:attnd-e2e')


@pytest.fixture(scope='module')
def server(attnd):
  with ShmServer(attnd) as running:
    yield running


@pytest.fixture
def region(server):
  with Region(server.shm_socket, 1 << 20) as made:
    yield made


@pytest.fixture
def peer(build_dir):
  """peer(server, what, *prefix) starts shared_memory_peer.py."""
  started = []

  def start(server, *what, prefix=()):
    started.append(subprocess.Popen(
        [*prefix, sys.executable, '-B', str(PEER), str(build_dir),
         str(server.shm_socket), server.unix, *what],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    return started[-1]

  yield start
  for process in started:
    process.kill()
    process.communicate()


def succeed(process, words=('registered', 'answered')):
  out, err = process.communicate(timeout=120)
  assert process.returncode == 0, err
  assert out.split() == list(words)


def check(client, region, query, key, value, gap=1 << 17, **options):
  """Checks that the answer in the region has the same bits as an answer in a
  message."""
  response = client.stub.Attention(
      shared_memory.request_of(client, region, query, key, value, gap=gap,
                               **options), timeout=60)
  inline = client.attention(query, key, value, **options)
  assert response.stats.flops == inline.stats.flops
  for name in ('output', 'lse'):
    assert response.HasField(name) == inline.HasField(name)
    if response.HasField(name):
      expected = client.raw(getattr(inline, name))
      answer = shared_memory.answer_of(client, region, getattr(response, name))
      assert answer.dtype == expected.dtype
      np.testing.assert_array_equal(answer, expected)
  return response


@pytest.mark.parametrize('options', problems.OPTIONS)
def test_options(client, region, rng, tensors, options):
  check(client, region, *tensors, **problems.OPTIONS[options](rng))


@pytest.mark.parametrize('causal', [reference.NONE, reference.BOTTOM_RIGHT])
@pytest.mark.parametrize('of', [np.float32, np.float16, bf16])
def test_types_and_lse(client, region, tensors, of, causal):
  typed = [of(t) if of is bf16 else t.astype(of) for t in tensors]
  check(client, region, *typed, causal=causal, return_lse=True)


def test_the_answer_is_right(client, region, tensors):
  response = check(client, region, *tensors, return_lse=True)
  output, lse = reference.attention(*tensors)
  bound = reference.error_bound(tensors[2])
  for tensor, expected in ((response.output, output), (response.lse, lse)):
    reference.assert_close(
        shared_memory.answer_of(client, region, tensor), expected, bound)


@pytest.mark.parametrize('q_len', [1, 100])
@pytest.mark.parametrize('of', [np.float32, np.float16])
def test_tensors_at_the_very_end(server, client, rng, q_len, of):
  """Each tensor ends with its region, at the end of a page, so that one byte
  more would be a page fault."""
  query = rng.standard_normal((2, q_len, 32)).astype(of)
  key, value = rng.standard_normal((2, 2, 333, 32)).astype(of)
  page = os.sysconf('SC_PAGESIZE')
  with contextlib.ExitStack() as regions:

    def put(array):
      size = -(-array.nbytes // page) * page
      region = regions.enter_context(Region(server.shm_socket, size))
      tensor = region.tensor(client, size - array.nbytes, array)
      assert tensor.shared_memory.offset_bytes % 64 == 0
      return region, tensor

    (_, q), (_, k), (_, v) = (put(t) for t in (query, key, value))
    region, output = put(np.zeros_like(query))
    request = client.pb.AttentionRequest(query=q, key=k, value=v)
    request.options.output_region.CopyFrom(output.shared_memory)
    response = client.stub.Attention(request, timeout=60)
    np.testing.assert_array_equal(
        shared_memory.answer_of(client, region, response.output),
        client.raw(client.attention(query, key, value).output))


def test_self_and_cross_attention(client, region, rng):
  pb = client.pb
  sequence = problems.normal(rng, 3, 50, 16)
  queries = problems.normal(rng, 3, 20, 16)
  options = client.options()
  options.output_region.CopyFrom(region.place(pb, 1 << 18))
  there = region.tensor(client, 0, sequence)
  answer = client.stub.SelfAttention(
      pb.SelfAttentionRequest(sequence=there, options=options), timeout=60)
  np.testing.assert_array_equal(
      shared_memory.answer_of(client, region, answer.output),
      client.raw(client.attention(sequence, sequence, sequence).output))
  answer = client.stub.CrossAttention(
      pb.CrossAttentionRequest(
          queries=region.tensor(client, 1 << 17, queries), kv_sequence=there,
          options=options), timeout=60)
  np.testing.assert_array_equal(
      shared_memory.answer_of(client, region, answer.output),
      client.raw(client.attention(queries, sequence, sequence).output))


def test_each_tensor_travels_its_own_way(client, region, tensors):
  query, key, value = tensors
  pb = client.pb
  expected = client.raw(client.attention(query, key, value).output)
  there = region.tensor(client, 0, key)
  request = pb.AttentionRequest(
      query=client.tensor(query), key=there,
      value=client.tensor(value, values=True))
  np.testing.assert_array_equal(
      client.raw(client.stub.Attention(request, timeout=60).output), expected)
  request.query.CopyFrom(region.tensor(client, 1 << 17, query))
  request.options.output_region.CopyFrom(region.place(pb, 1 << 18))
  answer = client.stub.Attention(request, timeout=60)
  np.testing.assert_array_equal(
      shared_memory.answer_of(client, region, answer.output), expected)


def test_empty_tensors(client, region):
  check(client, region, *np.ones((3, 2, 0, 8), np.float32), return_lse=True)


SPOILT = {
    'query.shared_memory.handle': lambda r: setattr(
        r.query.shared_memory, 'handle', b'x' * 15),
    'key.shared_memory.offset_bytes': lambda r: setattr(
        r.key.shared_memory, 'offset_bytes', 1 << 20),
    'value.shared_memory.offset_bytes': lambda r: setattr(
        r.value.shared_memory, 'offset_bytes', -64),
    'options.output_region.offset_bytes': lambda r: setattr(
        r.options.output_region, 'offset_bytes', 2**63 - 64),
    'options.lse_region.offset_bytes': lambda r: setattr(
        r.options.lse_region, 'offset_bytes', 32),
    'options.output_region': lambda r: r.options.ClearField('output_region'),
    'options.lse_region': lambda r: r.options.ClearField('lse_region'),
    # Shapes of 2^60 elements, in several forms.
    'query.shape': lambda r: r.query.shape.__setitem__(2, 2**58),
}


@pytest.mark.parametrize('field', SPOILT)
def test_refusals_name_the_field(client, region, tensors, refused, field):
  request = shared_memory.request_of(
      client, region, *tensors, gap=1 << 17, return_lse=True)
  SPOILT[field](request)
  refusal = refused(lambda: client.stub.Attention(request, timeout=60))
  assert (refusal.code, refusal.field) == (INVALID, field), refusal


def test_unknown_regions(server, client, region, tensors, refused):
  request = shared_memory.request_of(client, region, *tensors, gap=1 << 17)
  request.key.shared_memory.handle = b'x' * 16
  refusal = refused(lambda: client.stub.Attention(request, timeout=60))
  assert refusal.code == grpc.StatusCode.NOT_FOUND
  assert refusal.reason == 'UNKNOWN_REGION'
  assert refusal.field == 'key.shared_memory.handle'
  with Region(server.shm_socket, 1 << 20) as other:
    request = shared_memory.request_of(client, other, *tensors, gap=1 << 17)
    other.unregister(other.handle)
    refusal = refused(lambda: client.stub.Attention(request, timeout=60))
    assert refusal.reason == 'UNKNOWN_REGION'


def test_a_handle_is_for_whoever_knows_it(server, connect, region, tensors):
  for address in server.addresses:
    check(connect(address), region, *tensors)


def test_gradients_take_no_regions(client, region, tensors, refused):
  request = client.backward_request(*tensors, np.ones((2, 4, 37, 16)))
  request.key.CopyFrom(region.tensor(client, 0, tensors[1]))
  refusal = refused(lambda: client.stub.AttentionBackward(request))
  assert (refusal.code, refusal.field) == (INVALID, 'key.shared_memory')


def test_it_is_off_by_default(attnd, connect, region, tensors, refused):
  with Server(attnd) as other:
    client = connect(other.tcp)
    request = shared_memory.request_of(client, region, *tensors, gap=1 << 17)
    refusal = refused(lambda: client.stub.Attention(request, timeout=60))
    assert refusal.code == grpc.StatusCode.FAILED_PRECONDITION
    assert refusal.reason == 'SHARED_MEMORY_OFF'
    assert refusal.field == 'query.shared_memory'
    info = client.stub.GetServerInfo(client.pb.GetServerInfoRequest())
    assert 'shared_memory' not in info.features


def test_the_estimate_counts_no_tensors(client):
  pb = client.pb
  fields = {'seq_len': 4096, 'num_q_heads': 8}
  inline = client.stub.MemoryEstimate(pb.MemoryEstimateRequest(**fields))
  shared = client.stub.MemoryEstimate(pb.MemoryEstimateRequest(
      transport=pb.TRANSPORT_SHARED_MEMORY, **fields))
  assert shared.workspace_bytes == inline.workspace_bytes
  assert shared.input_bytes == inline.input_bytes
  # Beside the workspace and the messages, a call holds a few records.
  records = shared.peak_bytes - shared.workspace_bytes - shared.wire_bytes
  assert 0 <= records < 64 << 10
  assert shared.required_message_bytes == 4096


def test_the_server_says_that_it_is_on(client):
  info = client.stub.GetServerInfo(client.pb.GetServerInfoRequest())
  assert 'shared_memory' in info.features


@pytest.mark.parametrize('message,descriptors', [
    (b'', 1), (b'GET / HTTP/1.1\r\n\r\n', 0), (b'\0' * 65536, 1),
    (shared_memory.REGISTER, 0), (shared_memory.REGISTER, 2),
    (shared_memory.REGISTER, 250), (shared_memory.REGISTER[:7], 1),
    (shared_memory.REGISTER + b'x', 1), (b'ASHM\2\0\1\0', 1)])
def test_garbage_ends_a_connection(server, message, descriptors):
  before = len(os.listdir(f'/proc/{server.process.pid}/fd'))
  with memory(4096) as file, Connection(server.shm_socket) as connection:
    with pytest.raises((Refused, EOFError)) as caught:
      connection.ask(message, [file.fileno()] * descriptors)
    if caught.type is Refused:
      assert ': expected' in caught.value.text
      with pytest.raises(EOFError):
        connection.reply()
  poll_until(lambda: len(os.listdir(f'/proc/{server.process.pid}/fd'))
             <= before, 20, 'every descriptor closed')


def test_random_messages(server, rng):
  for length in rng.integers(1, 64, size=500):
    message = bytearray(rng.bytes(int(length)))
    keep = int(rng.integers(9))
    message[:keep] = shared_memory.REGISTER[:keep]
    with memory(4096) as file, Connection(server.shm_socket) as connection:
      try:
        connection.ask(bytes(message),
                       [file.fileno()] * int(rng.integers(3)))
        assert bytes(message) == shared_memory.REGISTER
      except (Refused, EOFError):
        pass
  poll_until(lambda: server.mappings() == 0, 20, 'every region unmapped')


def test_wrong_memory(server):
  with Connection(server.shm_socket) as connection:
    for seals in (0, shared_memory.SEALS & ~1, shared_memory.SEALS & ~2,
                  shared_memory.SEALS & ~4):
      with memory(4096, seals) as file, pytest.raises(Refused) as caught:
        connection.register(file.fileno())
      assert caught.value.text.startswith('seals: expected')
    with open(__file__, 'rb') as file, pytest.raises(Refused) as caught:
      connection.register(file.fileno())
    assert caught.value.text.startswith('descriptor: expected a memfd')
    with memory(4096) as file:  # and still it serves
      connection.register(file.fileno())


def test_quota(attnd, connect, tensors):
  with ShmServer(attnd, '--shm-quota-bytes=2097152') as small:
    client = connect(small.tcp)
    with Region(small.shm_socket, 1 << 20) as first:
      with pytest.raises(Refused) as caught:
        Region(small.shm_socket, (1 << 20) + 1)
      assert caught.value.text.startswith('size: expected at most 1048576')
      with Region(small.shm_socket, 1 << 20) as second:
        check(client, first, *tensors)
        check(client, second, *tensors)
    poll_until(lambda: small.mappings() == 0, 20, 'both regions unmapped')
    with Region(small.shm_socket, 2 << 20):
      pass


@pytest.fixture
def one_slot(attnd):
  """A server that runs one call at a time."""
  with ShmServer(attnd, '--max-in-flight=1') as running:
    yield running


def test_a_client_that_is_killed_during_its_call(one_slot, connect, peer):
  client = connect(one_slot.unix)
  process = peer(one_slot, 'endless')
  assert process.stdout.readline() == 'registered\n'
  poll_until(lambda: work.refusal_of(client), 60, 'its call in the only slot')
  assert one_slot.mappings() == 2
  process.kill()
  work.wait_until_free(client)
  poll_until(lambda: one_slot.mappings() == 0, 20, 'its region unmapped')


def test_a_region_outlives_its_connection_while_a_call_uses_it(
    one_slot, connect):
  client = connect(one_slot.tcp)
  pb = client.pb
  rows = work.rows_for(client, 3)
  sequence = np.ones((1, rows, 1), np.float32)
  with Region(one_slot.shm_socket, 16 << 20) as region:
    request = pb.SelfAttentionRequest(
        sequence=region.tensor(client, 0, sequence))
    request.options.output_region.CopyFrom(region.place(pb, 8 << 20))
    call = work.hold_slot(
        client, lambda: client.stub.SelfAttention.future(request, timeout=600))
    region.unregister(region.handle)
  assert not call.done() and one_slot.mappings() == 2
  answer = call.result()
  output = shared_memory.answer_of(client, region, answer.output)
  # The answer is the mean of ones.
  np.testing.assert_allclose(output, 1, atol=1e-5)
  poll_until(lambda: one_slot.mappings() == 0, 20, 'the region unmapped')


def test_cancel_lets_go_of_the_region(one_slot, connect):
  client = connect(one_slot.tcp)
  size = 4 * int(np.prod(work.ENDLESS))
  with Region(one_slot.shm_socket, 2 * size) as region:
    request = client.pb.SelfAttentionRequest(
        sequence=region.tensor(client, 0, np.ones(work.ENDLESS, np.float32)))
    request.options.output_region.CopyFrom(region.place(client.pb, size))
    call = work.hold_slot(
        client, lambda: client.stub.SelfAttention.future(request))
    call.cancel()
    work.wait_until_free(client)
  poll_until(lambda: one_slot.mappings() == 0, 20, 'the region unmapped')


def test_writes_during_the_call(server, client, region, rng):
  """The answers can be wrong, but the server and the answers of others must
  not be affected."""
  tensors = rng.standard_normal((3, 4, 150, 32)).astype(np.float32)
  gap = 1 << 17
  options = {'bias': problems.normal(rng, 150, 150),
             'mask': problems.mask_of(rng, 150, 150), 'return_lse': True}
  request = shared_memory.request_of(
      client, region, *tensors, gap=gap, **options)
  expected = client.raw(client.attention(*tensors, **options).output)
  stop = threading.Event()

  def scribble():
    everything = region.array(0, (1 << 20,), np.uint8)
    own = np.random.default_rng(1)
    while not stop.is_set():
      at = int(own.integers((1 << 20) - 65536))
      everything[at:at + 65536] = np.frombuffer(own.bytes(65536), np.uint8)
      region.array(at & ~63, (64,))[:] = own.choice(
          [np.nan, np.inf, -np.inf, 3e38])

  thread = threading.Thread(target=scribble)
  thread.start()
  try:
    for _ in range(200):
      client.stub.Attention(request, timeout=60)
    inline = client.attention(*tensors, **options)
  finally:
    stop.set()
    thread.join()
  np.testing.assert_array_equal(client.raw(inline.output), expected)
  check(client, region, *tensors, gap=gap, **options)


def test_holes_punched_during_the_call(server, client, region, rng):
  if shutil.which('fallocate') is None:
    pytest.skip('no fallocate')
  tensors = rng.standard_normal((3, 4, 150, 32)).astype(np.float32)
  request = shared_memory.request_of(client, region, *tensors, gap=1 << 17)
  with memory(1 << 20) as file:
    path = f'/proc/self/fd/{file.fileno()}'
    with Connection(server.shm_socket) as connection:
      handle = connection.register(file.fileno())
      for tensor in (request.query, request.key, request.value):
        tensor.shared_memory.handle = handle
      request.options.output_region.handle = handle
      for _ in range(20):
        call = client.stub.Attention.future(request, timeout=60)
        subprocess.run(['fallocate', '--punch-hole', '--length', '1048576',
                        path], check=True, pass_fds=[file.fileno()])
        call.result()
  check(client, region, *tensors)


def test_two_clients_at_once(server, connect, rng):
  def run(seed):
    own = np.random.default_rng(seed)
    client = connect(server.addresses[seed % 2])
    with Region(server.shm_socket, 1 << 20) as mine:
      for _ in range(30):
        check(client, mine, *own.standard_normal((3, 2, 60, 16))
              .astype(np.float32), return_lse=True)
    finished.append(seed)

  finished = []
  threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sorted(finished) == [0, 1, 2, 3]


def test_another_user(attnd, peer):
  if os.geteuid() != 0:
    pytest.skip('only root can become another user')
  with ShmServer(attnd) as own_uid_only:
    own_uid_only.folder.chmod(0o755)
    own_uid_only.shm_socket.chmod(0o666)
    process = peer(own_uid_only, 'small', NOBODY)
    _, err = process.communicate(timeout=120)
    assert f'refused: uid: expected one of --shm-allow-uids (0), got {NOBODY}' \
        in err
  with ShmServer(attnd, f'--shm-allow-uids=0,{NOBODY}',
                 '--socket-mode=0666') as both:
    both.folder.chmod(0o755)
    succeed(peer(both, 'small', NOBODY))
    succeed(peer(both, 'small'))


@pytest.fixture
def sidecar(attnd):
  """sidecar(*flags) starts a server like the sidecar on Kubernetes. It runs as
  a separate user, and the folder of its sockets gives new files to a shared
  group."""
  if os.geteuid() != 0:
    pytest.skip('only root can run processes of other users')
  with tempfile.TemporaryDirectory(prefix='attnd-') as folder:
    pathlib.Path(folder).chmod(0o755)
    binary = shutil.copy(attnd, folder)  # where that user may read it

    def make(*flags):
      server = ShmServer(
          binary, *flags, prefix=['setpriv', f'--reuid={SERVER_UID}',
                                  f'--regid={SERVER_UID}', '--clear-groups'])
      os.chown(server.folder, 0, int(SHARED_GROUP))
      server.folder.chmod(0o2777)
      return server

    yield make


def assert_denied(process):
  out, err = process.communicate(timeout=120)
  assert not out and 'Permission denied' in err, (out, err)


def test_the_socket_mode_lets_a_group_in(sidecar, peer):
  with sidecar('--socket-mode=0660') as server:
    for socket in (server.socket_path, server.shm_socket):
      status = socket.stat()
      assert stat.S_IMODE(status.st_mode) == 0o660
      assert (status.st_uid, status.st_gid) == (SERVER_UID, int(SHARED_GROUP))
    for what in ('inline', 'small'):
      assert_denied(peer(server, what, APPLICATION_UID))
    for user in ([], [APPLICATION_UID, SHARED_GROUP], [NOBODY, SHARED_GROUP]):
      succeed(peer(server, 'inline', *user), ['answered'])
      succeed(peer(server, 'small', *user))


def test_without_a_socket_mode_a_group_is_kept_out(sidecar, peer):
  with sidecar() as server:
    for what in ('inline', 'small'):
      assert_denied(peer(server, what, APPLICATION_UID, SHARED_GROUP))
    succeed(peer(server, 'small', str(SERVER_UID)))


def test_a_list_of_uids_outweighs_the_socket_mode(sidecar, peer):
  with sidecar('--socket-mode=0660',
               f'--shm-allow-uids={APPLICATION_UID}') as server:
    _, err = peer(server, 'small', NOBODY, SHARED_GROUP).communicate(
        timeout=120)
    assert f'expected one of --shm-allow-uids ({APPLICATION_UID})' in err
    succeed(peer(server, 'small', APPLICATION_UID, SHARED_GROUP))


def test_between_containers(attnd, peer, tmp_path):
  """Client and server have separate network, mount and IPC namespaces, and an
  empty /dev/shm. They share only the folder of the sockets."""
  apart = ['unshare', '--net', '--mount', '--ipc', '--pid', '--fork',
           '--kill-child', 'sh', '-c',
           'mount -t tmpfs none /dev/shm && exec "$@"', 'sh']
  if subprocess.run([*apart, 'true'], check=False,
                    capture_output=True).returncode != 0:
    pytest.skip('not permitted to make namespaces')
  wrapper = tmp_path / 'attnd'
  wrapper.write_text(f"""#!/bin/sh
exec unshare --net --mount --ipc sh -c 'mount -t tmpfs none /dev/shm && exec "$@"' \
  sh '{attnd}' "$@"
""")
  wrapper.chmod(0o755)
  with ShmServer(wrapper, listen='unix:' + str(tmp_path / 'a.sock')) as server:
    succeed(peer(server, 'small', prefix=apart))


def test_the_end_of_a_server(attnd, connect, tensors):
  with ShmServer(attnd) as ending:
    with Region(ending.shm_socket, 1 << 20) as region:
      check(connect(ending.tcp), region, *tensors)
      ending.stop()
      assert not ending.shm_socket.exists()
      assert region.socket.recv(1) == b''
