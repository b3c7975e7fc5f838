"""Tests attnctl with a real server: every option by its flag, on .npy files."""

import io
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
from support.server import Server, clean_environment

OK, CALL_FAILED, USAGE, DISAGREES, UNAVAILABLE, FILE_ERROR = range(6)


@pytest.fixture
def attnctl(build_dir, server):
  binary = build_dir / 'client' / 'attnctl'

  def run(command, *flags, **how):
    """Runs attnctl and returns the finished process."""
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


@pytest.fixture
def shell(build_dir, server, tmp_path):
  """shell(script) runs the script with bash in tmp_path and returns the
  finished process. In the script, `attnctl` is the tested program, and calls
  the tested server."""
  environment = clean_environment({'ATTND_SERVER': server.tcp})
  environment['PATH'] = f'{build_dir / "client"}{os.pathsep}{os.environ["PATH"]}'

  def run(script, **how):
    return subprocess.run(['bash', '-euo', 'pipefail', '-c', script],
                          cwd=tmp_path, env=environment, timeout=300,
                          check=False, **{'capture_output': True, **how})

  return run


def load(path):
  array = np.load(path)
  return array.view(np.uint16) if array.dtype == np.dtype('V2') else array


def flags_of(options, save):
  """Returns the options as flags, which have the names of the fields."""
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
  """Reads files of 16-bit elements, and files of 32-bit elements that attnctl
  rounds before it sends them."""
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


@pytest.mark.parametrize('flags', [(), ('--max-message-bytes=1200000',)],
                         ids=['inline', 'streamed'])
def test_a_call_waits_for_its_server(attnd, build_dir, save, tmp_path, flags):
  sequence = np.ones((3000, 128), np.float32)
  with Server(attnd) as server:
    server.stop()
    call = subprocess.Popen(
        [str(build_dir / 'client' / 'attnctl'), 'self',
         f'--server=unix:{server.socket_path}', *flags,
         f'--sequence={save("x", sequence)}', f'--output={tmp_path / "o.npy"}'],
        env=clean_environment(), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True)
    said = call.stderr.readline()
    server.start()
    out, rest = call.communicate(timeout=300)
  assert call.returncode == OK, (said, rest)
  assert said.startswith('attnctl: UNAVAILABLE: '), said
  assert said.endswith(
      '; trying again until the deadline of 60 s has passed (Ctrl-C stops)\n')
  assert rest == ''  # it is said only once
  assert out
  np.testing.assert_array_equal(np.load(tmp_path / 'o.npy'), sequence)


@pytest.mark.parametrize('command', ['info', 'health'])
def test_who_asks_what_is_there_waits_for_nothing(build_dir, tmp_path, command):
  run = subprocess.run(
      [str(build_dir / 'client' / 'attnctl'), command, '--deadline=0',
       f'--server=unix:{tmp_path / "nobody"}'],
      env=clean_environment(), capture_output=True, text=True, timeout=300,
      check=False)
  assert run.returncode == UNAVAILABLE
  assert 'trying again' not in run.stderr


@pytest.mark.parametrize('transport', ['inline', 'stream', 'shared-memory'])
def test_estimate_counts_what_attention_takes(attnctl, transport):
  """The estimate of the server counts the memory that a call takes, and the
  offline estimate agrees with it."""
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


ATTENTION = 'attnctl attention -q query.npy -k key.npy -v value.npy'


@pytest.fixture
def files(save, tensors):
  """Writes query.npy, key.npy and value.npy. Returns what attention makes of
  them."""
  inputs(NAMES, tensors, save)
  return reference.attention(*tensors)


def test_pipes_in_and_out(shell, save, rng, tensors, files):
  """Every file is a pipe at the same time. Only the array goes to stdout."""
  bias = normal(rng, tensors[0].shape[2], tensors[1].shape[2])
  save('bias', bias)
  save('mask', bias > -1)
  output, lse = reference.attention(*tensors, bias=bias, mask=bias > -1)
  save('expected', output)
  for report in ('[2, 4,', '--json'):
    done = shell(
        'attnctl attention -q <(cat query.npy) -k <(cat key.npy) '
        '-v <(cat value.npy) --bias <(cat bias.npy) --mask <(cat mask.npy) '
        '--expected <(cat expected.npy) -o /dev/stdout --lse=>(cat >lse.npy) '
        f'{report if report == "--json" else ""}| cat')
    assert done.returncode == OK, done.stderr
    got = np.load(io.BytesIO(done.stdout))
    np.testing.assert_allclose(got, output, atol=1e-5)
    if report == '--json':
      assert json.loads(done.stderr)['comparisons'][0]['agrees']
    else:
      assert b'output vs /dev/fd/' in done.stderr
      assert b'agrees' in done.stderr


def test_named_pipes(shell, tmp_path, files):
  """One attnctl reads the whole file that another writes."""
  os.mkfifo(tmp_path / 'pipe')
  done = shell(f"""
      {ATTENTION} -o pipe &
      python3 -c 'import sys; sys.stdout.buffer.write(open("pipe", "rb").read())
      ' >o.npy
      wait $!
      {ATTENTION} --expected=o.npy --max-error=0""")
  assert done.returncode == OK, done.stderr
  np.testing.assert_allclose(load(tmp_path / 'o.npy'), files[0], atol=1e-5)


def test_standard_input_and_output_may_be_anything(
    build_dir, server, shell, tmp_path, files):
  """Standard input or output can be a pipe that is filled piece by piece, a
  socket, or a file whose position is not its start."""
  command = [str(build_dir / 'client' / 'attnctl'), 'attention',
             '-q', '/dev/stdin', '-k', 'key.npy', '-v', 'value.npy',
             '-o', '/dev/stdout', f'--server={server.tcp}']
  query = (tmp_path / 'query.npy').read_bytes()
  with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                        env=clean_environment()) as process:
    for at in range(0, len(query), 61):
      process.stdin.write(query[at:at + 61])
      process.stdin.flush()
    process.stdin.close()
    from_pipe = process.stdout.read()
  assert process.returncode == OK

  ours, theirs = socket.socketpair()
  with ours, theirs:
    with subprocess.Popen(command, cwd=tmp_path, stdin=theirs, stdout=theirs,
                          stderr=subprocess.DEVNULL,
                          env=clean_environment()) as process:
      theirs.close()
      ours.sendall(query)
      ours.shutdown(socket.SHUT_WR)
      with ours.makefile('rb') as stream:
        assert stream.read() == from_pipe
  assert process.returncode == OK

  done = shell('echo before >all; '
               f'{ATTENTION} -o /dev/stdout >>all; '
               f'{ATTENTION} -o o.npy >/dev/null; '
               '{ echo before; cat o.npy; } | cmp - all')
  assert done.returncode == OK, done.stdout + done.stderr
  assert (tmp_path / 'o.npy').read_bytes() == from_pipe


@pytest.mark.parametrize('inputs_of_it,said', [
    ('-q <(head -c 200 query.npy)', 'got only '),
    ('-q <(cat query.npy; echo more)', 'got more bytes after them'),
    ('-q <(true)', 'got no bytes'),
    ('-q <(echo hello world)', 'expected a .npy file'),
    ('-q missing.npy', 'cannot open: No such file or directory'),
    ('-q .', 'cannot read: Is a directory')])
def test_a_bad_input_is_told_by_its_flag(shell, files, inputs_of_it, said):
  done = shell(f'attnctl attention {inputs_of_it} -k key.npy -v value.npy')
  assert done.returncode == FILE_ERROR
  assert done.stderr.decode().startswith('attnctl: --query='), done.stderr
  assert said in done.stderr.decode()


def test_one_pipe_is_not_two_files(shell, files):
  done = shell('cat query.npy | attnctl attention -q /dev/stdin -k /dev/stdin '
               '-v value.npy')
  assert done.returncode == FILE_ERROR
  assert b'--key=/dev/stdin: ' in done.stderr
  assert b'a pipe can be read only once' in done.stderr
  done = shell(f'{ATTENTION} -o /dev/stdout --lse=/dev/fd/1 | cat')
  assert done.returncode == USAGE and done.stdout == b''
  assert b'--lse: expected a file other than --output' in done.stderr


@pytest.mark.parametrize('command', [
    f'{ATTENTION} -o /dev/stdout', 'attnctl info', 'attnctl --help',
    f'{ATTENTION}'])
def test_output_that_cannot_be_written(shell, files, command):
  """attnctl writes to a full disk, and to a pipe that nobody reads."""
  done = shell(f'{command} >/dev/full')
  assert done.returncode == FILE_ERROR, done.stderr
  assert b'cannot write: No space left on device' in done.stderr
  reader, writer = os.pipe()
  os.close(reader)
  try:
    done = shell(command, capture_output=False, stdout=writer,
                 stderr=subprocess.PIPE)
  finally:
    os.close(writer)
  assert done.returncode == FILE_ERROR, done.stderr
  assert b'cannot write: Broken pipe' in done.stderr


def write_npy(path, array, header):
  path.write_bytes(b'\x93NUMPY\1\0' + len(header).to_bytes(2, 'little') +
                   header + array.tobytes())


def test_headers_of_every_numpy(shell, tmp_path, tensors, files):
  """attnctl reads every version of the format, and files that NumPy wrote on
  Python 2."""
  for version in ((1, 0), (2, 0), (3, 0)):
    with open(tmp_path / 'query.npy', 'wb') as file:
      np.lib.format.write_array(file, tensors[0], version)
    done = shell(f'{ATTENTION} -o {version[0]}.npy')
    assert done.returncode == OK, done.stderr
  shape = ''.join(f'{extent}L, ' for extent in tensors[0].shape)[:-2]
  header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}"
  write_npy(tmp_path / 'query.npy', tensors[0],
            header.encode().ljust(117) + b'\n')
  done = shell(f'{ATTENTION} -o 4.npy && cmp 1.npy 2.npy && cmp 1.npy 3.npy && '
               'cmp 1.npy 4.npy')
  assert done.returncode == OK, done.stderr


def test_float64(shell, save, tmp_path, tensors, files):
  """float64 is rounded to --dtype in the same way as by NumPy, and refused
  without --dtype."""
  wide = [t.astype(np.float64) + 1e-12 for t in tensors]
  inputs(NAMES, wide, save)
  done = shell(ATTENTION)
  assert done.returncode == FILE_ERROR
  assert b'--query=query.npy: expected float32, float16 or bfloat16, got ' \
      b"float64 ('<f8'); add --dtype=f32, f16 or bf16 to round it" in done.stderr
  for dtype, rounded in (('f32', np.float32), ('f16', np.float16)):
    inputs(NAMES, wide, save)
    done = shell(f'{ATTENTION} --dtype={dtype} -o of_wide.npy')
    assert done.returncode == OK, done.stderr
    inputs(NAMES, [t.astype(rounded) for t in wide], save)
    done = shell(f'{ATTENTION} -o o.npy && cmp o.npy of_wide.npy')
    assert done.returncode == OK, done.stdout + done.stderr


def test_a_number_that_does_not_fit_is_refused(shell, files):
  done = shell(f'{ATTENTION} --window-left=9999999999999999999')
  assert done.returncode == USAGE
  assert (b'--window-left: expected a number that an int64 can hold, got '
          b'9999999999999999999' in done.stderr)


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


def test_the_admin_port_is_named(build_dir, attnd):
  with Server(attnd, admin='127.0.0.1:0') as server:
    done = subprocess.run(
        [str(build_dir / 'client' / 'attnctl'), 'info',
         f'--server={server.admin}'], env=clean_environment(),
        capture_output=True, text=True, timeout=60, check=False)
  assert done.returncode == UNAVAILABLE
  assert "as attnd's admin port is (--admin-listen): calls need" in done.stderr


def test_a_passed_deadline_names_its_flag(attnctl, save):
  sequence = save('x', np.ones((16, 65536, 1), np.float32))
  done = attnctl('self', f'--sequence={sequence}', '--deadline=0.2')
  assert done.returncode == CALL_FAILED
  assert 'attnctl: DEADLINE_EXCEEDED' in done.stderr
  assert '--deadline=SECONDS gives the call more' in done.stderr


def test_grpc_prints_nothing_of_a_hostile_server(build_dir):
  hostile = http2.literals({':status': '200', 'content-type':
                            'application/grpc',
                            'grpc-encoding': 'x\x1b[2J\nattnctl: fine'})
  trailers = http2.literals({'grpc-status': '13'})

  def serve(listener):
    """Answers the first call with headers about which gRPC writes a warning."""
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
