"""attnctl against a real server: every option by its flag, on .npy files."""

import json
import os
import resource
import socket
import subprocess
import threading

import numpy as np
import pytest

from support import http2, reference
from support.client import bf16, widened
from support.problems import OPTIONS, expected_options, in_bshd, normal
from support.server import clean_environment

OK, CALL_FAILED, USAGE, DISAGREES, FILE_ERROR = 0, 1, 2, 3, 5


@pytest.fixture
def attnctl(build_dir, server):
  binary = build_dir / 'client' / 'attnctl'

  def run(command, *flags, **how):
    """Returns the finished process."""
    return subprocess.run(
        [str(binary), command, f'--server={server.tcp}', *flags],
        env=clean_environment(), capture_output=True, text=True, timeout=300,
        check=False, **how)

  return run


@pytest.fixture
def save(tmp_path):
  """save(name, array) writes name.npy and returns its path."""

  def write(name, array):
    if array.dtype == np.uint16:  # as NumPy saves a bfloat16 of ml_dtypes
      array = array.view('<V2')
    np.save(tmp_path / f'{name}.npy', array)
    return tmp_path / f'{name}.npy'

  return write


def load(path):
  array = np.load(path)
  return array.view(np.uint16) if array.dtype == np.dtype('V2') else array


def flags_of(options, save):
  """The options as flags, named as the fields are."""
  flags = []
  for name, value in options.items():
    if isinstance(value, np.ndarray):
      value = save(name, value)
    elif isinstance(value, list):
      value = ','.join(map(str, value))
    elif name == 'causal':
      value = value.replace('_', '-')
    flags.append(f'--{name.replace("_", "-")}={value}')
  return flags


def inputs(names, arrays, save):
  return [f'--{name}={save(name, t)}' for name, t in zip(names, arrays)]


NAMES = ('query', 'key', 'value')


@pytest.mark.parametrize('name', OPTIONS)
def test_an_option(attnctl, save, tmp_path, rng, tensors, name):
  options = OPTIONS[name](rng)
  output, lse = reference.attention(*tensors, **expected_options(options))
  run = attnctl(
      'attention', *inputs(NAMES, tensors, save), *flags_of(options, save),
      f'--output={tmp_path}/o.npy', f'--lse={tmp_path}/l.npy',
      f'--expected={save("expected", output)}',
      f'--expected-lse={save("expected_lse", lse)}',
      f'--max-error={2 * reference.error_bound(tensors[2])}')
  assert run.returncode == OK, run.stderr + run.stdout
  assert 'output vs' in run.stdout and 'lse vs' in run.stdout, run.stdout

  grad_output = normal(rng, *output.shape)
  grads = reference.gradients(
      *tensors, grad_output, **expected_options(options))
  bound = 64 * np.finfo(np.float32).eps * max(np.max(np.abs(g)) for g in grads)
  run = attnctl(
      'backward', *inputs(NAMES, tensors, save), *flags_of(options, save),
      f'--output={tmp_path}/o.npy', f'--lse={tmp_path}/l.npy',
      f'--grad-output={save("grad_output", grad_output)}',
      f'--grad-key={tmp_path}/dk.npy',
      *(f'--expected-grad-{n}={save(f"expected_{n}", g)}'
        for n, g in zip(NAMES, grads)), f'--max-error={max(bound, 1e-6)}')
  assert run.returncode == OK, run.stderr + run.stdout
  assert run.stdout.count('agrees') == 3, run.stdout
  assert load(tmp_path / 'dk.npy').shape == tensors[1].shape


def test_layout(attnctl, save, tmp_path, tensors):
  output, lse = reference.attention(*tensors)
  run = attnctl(
      'attention', *inputs(NAMES, in_bshd(tensors), save), '--layout=bshd',
      f'--expected={save("expected", np.swapaxes(output, 1, 2))}',
      f'--expected-lse={save("expected_lse", lse)}')
  assert run.returncode == OK, run.stderr + run.stdout


def test_a_ragged_batch(attnctl, save, rng):
  tensors = [normal(rng, 4, 45, 24), normal(rng, 2, 70, 24),
             normal(rng, 2, 70, 16)]
  options = {'cu_seqlens_q': [0, 44, 45], 'cu_seqlens_k': [0, 30, 70]}
  output, _ = reference.attention(*tensors, **options)
  run = attnctl(
      'attention', *inputs(NAMES, tensors, save), *flags_of(options, save),
      f'--expected={save("expected", output)}')
  assert run.returncode == OK, run.stderr + run.stdout


@pytest.mark.parametrize('dtype,rounded,bound', [
    ('f16', lambda t: t.astype(np.float16), 2**-9), ('bf16', bf16, 2**-5)])
def test_types(attnctl, save, tmp_path, tensors, dtype, rounded, bound):
  """Files of 16 bits, and files of 32 that are rounded before they go."""
  halves = [rounded(t) for t in tensors]
  output, _ = reference.attention(*(widened(t) for t in halves))
  answers = []
  for files, flags in ((halves, []), (tensors, [f'--dtype={dtype}'])):
    run = attnctl(
        'attention', *inputs(NAMES, files, save), *flags,
        f'--output={tmp_path}/o.npy', f'--expected={save("expected", output)}',
        f'--max-error={bound}')
    assert run.returncode == OK, run.stderr + run.stdout
    answers.append(load(tmp_path / 'o.npy'))
    assert answers[-1].dtype == halves[0].dtype
  assert answers[0].tobytes() == answers[1].tobytes()
  run = attnctl(
      'attention', *inputs(NAMES, halves, save), '--precision=f32',
      '--output-dtype=f32', f'--output={tmp_path}/o.npy',
      f'--expected={save("expected", output)}')
  assert run.returncode == OK, run.stderr + run.stdout
  assert load(tmp_path / 'o.npy').dtype == np.float32


def test_self_and_cross(attnctl, save, rng):
  sequence, other = normal(rng, 4, 30, 16), normal(rng, 2, 50, 16)
  output, _ = reference.attention(sequence, sequence, sequence, window_left=3)
  run = attnctl('self', *inputs(['sequence'], [sequence], save),
                '--window-left=3', f'--expected={save("expected", output)}')
  assert run.returncode == OK, run.stderr + run.stdout
  output, _ = reference.attention(sequence, other, other, key_lengths=[9])
  run = attnctl(
      'cross', *inputs(['queries', 'kv-sequence'], [sequence, other], save),
      '--key-lengths=9', f'--expected={save("expected", output)}')
  assert run.returncode == OK, run.stderr + run.stdout


def test_refusals_name_the_field(attnctl, save, tensors):
  run = attnctl('attention', *inputs(NAMES, tensors, save),
                '--alibi-slopes=1,2', f'--mask={save("mask", tensors[0])}')
  assert run.returncode == CALL_FAILED
  assert 'options.mask.dtype' in run.stderr, run.stderr
  run = attnctl('attention', *inputs(NAMES, tensors, save),
                '--alibi-slopes=1,2')
  assert 'field:  options.alibi_slopes' in run.stderr, run.stderr


@pytest.mark.parametrize('transport', ['inline', 'stream', 'shared-memory'])
def test_estimate_counts_what_attention_takes(attnctl, transport):
  """And offline says what the server does."""
  flags = ['--batch=2', '--num-q-heads=4', '--num-kv-heads=2', '--q-len=37',
           '--kv-len=61', '--head-dim=24', '--v-head-dim=16', '--dtype=bf16',
           '--output-dtype=f32', '--bias-shape=4,37,61', '--bias-dtype=f16',
           '--mask-shape=2,1,1,61', '--key-lengths=61,9', '--window-left=5',
           '--layout=bshd', '--return-lse', '--json', '--threads=2',
           f'--transport={transport}']
  served, offline = (
      json.loads(run.stdout) for run in (
          attnctl('estimate', *flags), attnctl('estimate', *flags,
                                               '--offline')))
  q, k, v = 2 * 4 * 37 * 24, 2 * 2 * 61 * 24, 2 * 2 * 61 * 16
  assert served['input_bytes'] == 2 * (q + k + v) + 2 * 4 * 37 * 61 + 2 * 61
  assert served['output_bytes'] == 4 * (2 * 4 * 37 * 16 + 2 * 4 * 37)
  assert {k: served[k] for k in offline} == offline
  inline = json.loads(attnctl('estimate', *flags[:-1], '--offline').stdout)
  for of_transport in ('wire_bytes', 'required_message_bytes'):
    assert (served[of_transport] == inline[of_transport]) == (
        transport == 'inline')


@pytest.mark.parametrize('flag,value', [
    ('window-left', '-1'), ('alibi-slopes', '1,2,3'), ('key-lengths', '99'),
    ('bias-shape', '3,3'), ('mask-shape', '2'), ('q-len', '-1'),
    ('num-kv-heads', '3')])
def test_offline_refusals_name_the_flag(attnctl, flag, value):
  run = attnctl('estimate', '--offline', '--seq-len=8', '--num-q-heads=4',
                '--layout=bshd', f'--{flag}={value}')
  assert run.returncode == USAGE, run.stdout
  assert f'--{"num-q-heads" if flag == "num-kv-heads" else flag}' in run.stderr


@pytest.mark.skipif(bool(os.environ.get('ATTND_SANITIZE')),
                    reason='sanitizers need address space without a limit, and '
                    'end a process that is out of memory')
def test_a_file_that_memory_has_no_room_for_is_named(attnctl, tmp_path):
  path = tmp_path / 'large.npy'
  rows = 10 * 2**30 // 4
  np.lib.format.open_memmap(path, 'w+', np.float32, (rows, 1))  # of holes
  limit = 2 * 2**30
  done = attnctl('self', f'--sequence={path}', preexec_fn=lambda:
                 resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
  assert done.returncode == FILE_ERROR
  assert (f'{path}: there is not enough memory for its {4 * rows} bytes' in
          done.stderr)


def test_grpc_prints_nothing_of_a_hostile_server(build_dir):
  hostile = http2.literals({':status': '200', 'content-type':
                            'application/grpc',
                            'grpc-encoding': 'x\x1b[2J\nattnctl: fine'})
  trailers = http2.literals({'grpc-status': '13'})

  def serve(listener):
    """Answers the first call with headers that gRPC complains of."""
    connection, _ = listener.accept()
    with connection:
      connection.settimeout(60)
      connection.sendall(http2.frame(http2.SETTINGS))
      received = b''
      while b'GetServerInfo' not in received:
        received += connection.recv(1 << 16)
      connection.sendall(
          http2.frame(http2.SETTINGS, flags=http2.ACK) +
          http2.frame(http2.HEADERS, hostile, http2.END_HEADERS, 1) +
          http2.frame(http2.HEADERS, trailers,
                      http2.END_HEADERS | http2.END_STREAM, 1))
      while connection.recv(1 << 16):
        pass

  with socket.create_server(('127.0.0.1', 0)) as listener:
    thread = threading.Thread(target=serve, args=(listener,))
    thread.start()
    host, port = listener.getsockname()
    done = subprocess.run(
        [str(build_dir / 'client' / 'attnctl'), 'info',
         f'--server={host}:{port}'], env=clean_environment(),
        capture_output=True, text=True, timeout=60, check=False)
    thread.join()
  assert done.returncode == CALL_FAILED
  assert f'server: {host}:{port}' in done.stderr
  assert '\x1b' not in done.stderr
  assert '\nattnctl: fine' not in done.stderr
