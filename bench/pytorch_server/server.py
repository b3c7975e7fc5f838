#!/usr/bin/env python3
"""Serves the method Attention with PyTorch's scaled_dot_product_attention, as a user
could write it instead of running attnd. compare.py measures it beside attnd.

It supports f32, f16 and bf16, grouped heads and the causal rule from the top left, and
needs the packages of tests/peers/requirements.txt. It reads tensors in place from the
received message.
"""

import argparse
from concurrent import futures
import os
import pathlib
import sys
import warnings

import grpc
from grpc_health.v1 import health, health_pb2_grpc
import torch
from torch.nn import functional

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / 'tests' / 'e2e'))
from support import stubs  # pylint: disable=wrong-import-position

pb, pb_grpc = stubs.load(REPOSITORY / 'build')

DTYPES = {pb.DATA_TYPE_F32: torch.float32, pb.DATA_TYPE_F16: torch.float16,
          pb.DATA_TYPE_BF16: torch.bfloat16}

# Calls at the same time. On two processors, four callers get fewer answers with one
# worker, and no more with eight.
WORKERS = 4


def from_message(tensor):
  flat = torch.frombuffer(tensor.data, dtype=DTYPES[tensor.dtype])
  return flat.view(*tensor.shape)


def to_message(tensor, dtype):
  elements = tensor.contiguous().view(torch.uint8).numpy()
  return pb.Tensor(dtype=dtype, shape=tensor.shape, data=elements.tobytes())


class AttentionService(pb_grpc.AttentionServiceServicer):

  def Attention(self, request, context):
    query, key, value = map(from_message,
                            (request.query, request.key, request.value))
    shape = query.shape
    if shape[2] == 1:
      # The heads that share a kv head become its rows. That is faster than enable_gqa.
      query = query.view(shape[0], key.shape[1], -1, shape[3])
    with torch.inference_mode():
      output = functional.scaled_dot_product_attention(
          query, key, value,
          is_causal=request.options.causal == pb.CAUSAL_TOP_LEFT,
          enable_gqa=query.shape[1] != key.shape[1]).reshape(shape)
    return pb.AttentionResponse(output=to_message(output, request.query.dtype))


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--listen', required=True,
                      help='unix:PATH or HOST:PORT, or several with commas')
  parser.add_argument('--address-file', type=pathlib.Path, required=True,
                      help='gets the addresses when the server is ready')
  flags = parser.parse_args()
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  # The memory of a message must not be written to, and nothing here does.
  warnings.filterwarnings('ignore', message='.*buffer is not writable')
  server = grpc.server(
      futures.ThreadPoolExecutor(max_workers=WORKERS),
      options=[('grpc.max_receive_message_length', -1),
               ('grpc.max_send_message_length', -1)])
  pb_grpc.add_AttentionServiceServicer_to_server(AttentionService(), server)
  health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
  addresses = []
  for address in flags.listen.split(','):
    port = server.add_insecure_port(address)
    addresses.append(address if address.startswith('unix:') else
                     f'{address.rsplit(":", 1)[0]}:{port}')
  server.start()
  unfinished = flags.address_file.with_suffix('.new')
  unfinished.write_text('\n'.join(addresses) + '\n', encoding='utf-8')
  unfinished.rename(flags.address_file)
  server.wait_for_termination()


if __name__ == '__main__':
  main()
