#!/usr/bin/env python3
"""Compares attnd with a Python gRPC server around PyTorch's
scaled_dot_product_attention (server.py in this folder).

Both servers run with their defaults on all processors, serve the same contract, and
get the same calls from the same client: attnd's C++ client library over TCP and over a
unix socket, and a Python client with generated stubs over TCP. Bursts of 20 ms, or of
one call, take turns between the servers. One caller gives the p50, and four callers
give the rate. The answers of both servers are compared before anything is measured.

Each bar has a line HELD or MISSED. The exit code is 1 if a bar is missed.
"""

import argparse
from concurrent import futures
import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
import threading
import time

import grpc
import numpy
import torch

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path[:0] = [str(HERE.parent), str(REPOSITORY / 'tests' / 'e2e')]

import server_process  # pylint: disable=wrong-import-position
from support import stubs  # pylint: disable=wrong-import-position

pb, pb_grpc = stubs.load(REPOSITORY / 'build')

# The least that attnd's p50 must be better, with the C++ client.
BAR = 2
BURST_SECONDS = 0.02
CLIENTS = 1, 4
# The largest relative difference of two answers (root mean square). bf16 has 8 bits.
TOLERANCE = {'f32': 1e-4, 'bf16': 1e-2}


def call_once(stub, request):
  """Makes a call and returns the elements of its answer, as a user would."""
  answer = stub.Attention(request())
  return numpy.frombuffer(answer.output.data, numpy.uint8)


@dataclasses.dataclass
class Caller:
  """Calls one server over as many connections as there are clients."""
  address: str
  clients: int
  samples: list = dataclasses.field(default_factory=list)
  spent: float = 0

  def __post_init__(self):
    # A pool of subchannels of its own gives each channel its own connection.
    options = [('grpc.max_receive_message_length', -1),
               ('grpc.max_send_message_length', -1),
               ('grpc.use_local_subchannel_pool', 1)]
    self.stubs = [
        pb_grpc.AttentionServiceStub(grpc.insecure_channel(self.address, options))
        for _ in range(self.clients)]
    self.pool = futures.ThreadPoolExecutor(self.clients)

  def burst(self, request):
    start = threading.Barrier(self.clients)

    def run(stub):
      start.wait()
      before = time.perf_counter()
      end = before + BURST_SECONDS
      samples = []
      while not samples or before < end:
        call_once(stub, request)
        after = time.perf_counter()
        samples.append((after - before) * 1e6)
        before = after
      return samples

    begin = time.perf_counter()
    for samples in self.pool.map(run, self.stubs):
      self.samples += samples
    self.spent += time.perf_counter() - begin

  def forget(self):
    self.samples.clear()
    self.spent = 0

  def numbers(self, name):
    return {f'{name}_p50_us': statistics.median(self.samples),
            f'{name}_rps': len(self.samples) / self.spent,
            f'{name}_samples': len(self.samples)}


def tensors(shape, dtype='f32'):
  """Returns the arrays of a case by the names of the request's fields. Those of bf16
  have its bits."""
  rng = numpy.random.default_rng(1)
  arrays = {}
  for name, heads, rows in (('query', 'q_heads', 'q_len'),
                            ('key', 'kv_heads', 'kv_len'),
                            ('value', 'kv_heads', 'kv_len')):
    array = rng.standard_normal(
        (1, shape[heads], shape[rows], shape['head_dim']), numpy.float32)
    arrays[name] = (array if dtype == 'f32' else
                    (array.view(numpy.uint32) >> 16).astype(numpy.uint16))
  return arrays


def request_maker(arrays, causal, dtype='f32'):
  """Returns a function that makes the request from arrays, as each call does."""
  number = pb.DATA_TYPE_F32 if dtype == 'f32' else pb.DATA_TYPE_BF16
  options = pb.AttentionOptions(
      causal=pb.CAUSAL_TOP_LEFT if causal else pb.CAUSAL_UNSPECIFIED)

  def make():
    return pb.AttentionRequest(options=options, **{
        name: pb.Tensor(dtype=number, shape=array.shape, data=array.tobytes())
        for name, array in arrays.items()})

  return make


def difference(case, addresses, dtype='f32'):
  """Returns the relative difference of the two answers to one call. Exits if it is too
  large."""
  request = request_maker(tensors(case, dtype), case['causal'], dtype)
  answers = []
  for address in addresses:
    flat = call_once(Caller(address, 1).stubs[0], request)
    answers.append(flat.view(numpy.float32) if dtype == 'f32' else
                   (flat.view(numpy.uint16).astype(numpy.uint32) << 16).view(
                       numpy.float32))
  ours, theirs = answers
  result = float(numpy.sqrt(numpy.mean((theirs - ours)**2) /
                            numpy.mean(ours**2)))
  if not result <= TOLERANCE[dtype]:
    sys.exit(f'{case["case"]}, {dtype}: the answers of the two servers differ by '
             f'{result:.1e} (relative rms)')
  return result


def python_record(case, clients, addresses, options):
  """Measures a case with the Python client."""
  request = request_maker(tensors(case), case['causal'])
  callers = [Caller(address, clients) for address in addresses]
  for caller in callers:  # warms up
    caller.burst(request)
    caller.forget()
  begin, rounds = time.perf_counter(), 0
  while rounds < options.rounds or time.perf_counter() - begin < options.seconds:
    for caller in callers:
      caller.burst(request)
    rounds += 1
  shape = {key: value for key, value in case.items()
           if not key.startswith(('attnd_', 'pytorch_'))}
  return {**shape, 'client': 'Python', 'transport': 'tcp', 'clients': clients,
          **callers[0].numbers('attnd'), **callers[1].numbers('pytorch')}


def show(record):
  faster = record['pytorch_p50_us'] / record['attnd_p50_us']
  rate = record['attnd_rps'] / record['pytorch_rps']
  print(f'{record["case"]:9} {record["client"]:7} {record["transport"]:5} '
        f'{record["clients"]} callers  '
        f'p50 {record["attnd_p50_us"]:8.0f} {record["pytorch_p50_us"]:8.0f} us '
        f'{faster:5.2f}x  '
        f'rate {record["attnd_rps"]:8.1f} {record["pytorch_rps"]:8.1f} /s '
        f'{rate:5.2f}x', flush=True)


def cpp_records(options, addresses, transport):
  """Measures all cases with the C++ client. Yields the machine first."""
  command = [options.build / 'bench' / 'compare_servers',
             f'--attnd={addresses[0]}', f'--other={addresses[1]}',
             f'--transport={transport}', f'--rounds={options.rounds}',
             f'--seconds={options.seconds}', '--filter', options.filter]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    yield from map(json.loads, process.stdout)
  if process.returncode != 0:
    sys.exit(f'compare_servers exited with {process.returncode}')


def judge(records):
  for r in records:
    if r['clients'] == 1 and r['client'] == 'C++':
      measured = r['pytorch_p50_us'] / r['attnd_p50_us']
      verdict = {'bar': f'{r["case"]}: p50 of the PyTorch server / p50 of attnd',
                 'case': r['case'], 'transport': r['transport'],
                 'measured': measured,
                 'at_least': BAR, 'meets': measured >= BAR}
      print(f'{"HELD  " if verdict["meets"] else "MISSED"} {verdict["bar"]}, '
            f'{r["transport"]}: {measured:.2f} >= {BAR}')
      yield verdict


def parse_arguments():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--build', type=pathlib.Path,
                      default=REPOSITORY / 'build' / 'release')
  parser.add_argument('--filter', default='',
                      help='only cases whose name contains this text')
  parser.add_argument('--rounds', type=int, default=7,
                      help='the fewest rounds of a case (default: %(default)s)')
  parser.add_argument('--seconds', type=float, default=10,
                      help='how long to measure a case with one kind of client and '
                      'one number of callers (default: %(default)s)')
  parser.add_argument('--json', type=pathlib.Path,
                      help='write the records to this file')
  return parser.parse_args()


def main():
  options = parse_arguments()
  records = []
  with (server_process.Server(options.build / 'server' / 'attnd') as attnd,
        server_process.Process(sys.executable, '-B',
                               HERE / 'server.py') as pytorch):
    tcp = attnd.tcp_address, pytorch.tcp_address
    for transport, addresses in (
        ('tcp', tcp), ('unix', (attnd.address, pytorch.address))):
      measured = cpp_records(options, addresses, transport)
      machine = next(measured)
      for record in measured:
        show(record)
        records.append(record)
    cases = [r for r in records if r['transport'] == 'tcp' and r['clients'] == 1]
    for case in cases:
      difference(case, tcp, 'bf16')
      case_difference = difference(case, tcp)
      for clients in CLIENTS:
        record = python_record(case, clients, tcp, options)
        record['difference'] = case_difference
        show(record)
        records.append(record)
  if not records:
    sys.exit(f'no case has {options.filter!r} in its name')
  verdicts = list(judge(records))
  if options.json:
    machine['pytorch'] = torch.__version__
    lines = [{'machine': machine}, *({'record': r} for r in records),
             *({'verdict': v} for v in verdicts)]
    options.json.write_text(''.join(
        json.dumps(line, separators=(',', ':')) + '\n' for line in lines),
        encoding='utf-8')
  return 0 if all(v['meets'] for v in verdicts) else 1


if __name__ == '__main__':
  sys.exit(main())
