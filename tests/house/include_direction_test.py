#!/usr/bin/env python3
"""Checks which folder includes which, by reading #include lines.

usage: include_direction_test.py REPOSITORY

First shows on planted files that it finds each kind of breach.
"""

import graphlib
import pathlib
import re
import sys
import tempfile

# What a folder, with the folders below it that have no row of their own, may
# include beside itself and the standard library: folders of ours and libraries.
# "proto" includes the code that is generated from the contract. Some rows are for
# a single file.
RULES = {
    'base': ('', 'absl'),
    'proto': ('', 'absl grpc protobuf'),
    'core': ('base', 'absl'),
    # Private: only its tests and benchmarks include its headers.
    'core/kernels': ('base core', 'absl hwy'),
    'wire': ('base proto', 'absl protobuf'),
    'wire/grpc': ('base', 'absl grpc'),
    'cost': ('base core wire', 'absl'),

    'client': ('base proto wire wire/grpc', 'absl grpc protobuf'),
    # Checks certificates and keys. gRPC would use OpenSSL too, but not say which
    # file is wrong.
    'client/access.cc': ('base client', 'absl openssl'),
    # How the core merges partial results. Needs only the standard library.
    'client/merge.cc': ('base client core/merge.h', 'absl'),
    'client/attnctl': ('base client core cost wire', 'absl CLI nlohmann'),

    'server/version.h': ('', ''),
    'server/status': ('base core proto wire', 'absl protobuf'),
    'server/memory': ('base core wire server/status', 'absl'),
    'server/load': ('base core proto server/memory server/status wire',
                    'absl protobuf'),
    'server/log': ('core', 'absl spdlog'),
    'server/tracing': ('server/version.h', 'absl opentelemetry spdlog'),
    'server/access': ('base wire', 'absl grpc openssl spdlog'),
    'server/connections': ('base proto wire wire/grpc server/status',
                           'absl grpc openssl spdlog'),
    'server/codec': ('base core proto wire server/memory server/status',
                     'absl protobuf'),
    'server/shared_memory': ('base core proto wire server/codec '
                             'server/connections server/memory server/status',
                             'absl spdlog'),
    'server/planning': ('base core cost proto wire server/codec server/memory '
                        'server/shared_memory server/status', 'absl protobuf'),
    'server/calls': ('base core cost proto wire server/access/access_control.h '
                     'server/codec server/load server/memory server/planning '
                     'server/shared_memory server/status server/tracing '
                     'server/version.h',
                     'absl protobuf spdlog'),
    'server/rpc': ('base core cost proto wire wire/grpc server/access '
                   'server/calls server/codec server/load server/log '
                   'server/memory server/status server/tracing',
                   'absl grpc protobuf spdlog'),
    'server/metrics': ('base core cost proto wire server/access/access_control.h '
                       'server/calls server/codec server/load server/memory '
                       'server/shared_memory server/status server/version.h',
                       'absl prometheus'),
    'server/admin': ('base core cost proto wire server/calls server/codec '
                     'server/connections server/load server/memory '
                     'server/metrics server/planning server/shared_memory server/status',
                     'absl httplib protobuf'),
    'server/process': ('base core cost proto wire server/calls server/codec '
                       'server/log server/memory server/status',
                       'absl grpc protobuf spdlog'),
    # The files that are in server/ itself put all of it together.
    'server': ('base core cost proto wire wire/grpc server/access '
               'server/admin server/calls server/codec server/connections '
               'server/load server/log server/memory server/metrics server/planning '
               'server/process server/rpc server/shared_memory server/status '
               'server/tracing server/version.h', 'absl CLI grpc protobuf spdlog'),

    'bench': ('base client core core/kernels cost proto wire',
              'absl benchmark CLI grpc hwy nlohmann protobuf'),
    'tests/base': ('base tests', 'absl gtest'),
    'tests/core': ('base core core/kernels tests', 'absl gtest hwy'),
    'tests/wire': ('base proto tests wire wire/grpc',
                   'absl grpc gtest protobuf'),
    'tests/client': ('base client client/attnctl core cost proto tests wire '
                     'wire/grpc',
                     'absl CLI grpc gtest nlohmann openssl protobuf'),
}

# How the path of a library's header begins.
LIBRARIES = {
    'absl/flags/': 'flags', 'absl/': 'absl', 'benchmark/': 'benchmark',
    'CLI/': 'CLI', 'gmock/': 'gtest', 'google/protobuf/': 'protobuf',
    'grpc/': 'grpc', 'grpcpp/': 'grpc', 'gtest/': 'gtest',
    'httplib.h': 'httplib', 'hwy/': 'hwy',
    'nlohmann/': 'nlohmann', 'openssl/': 'openssl',
    'opentelemetry/': 'opentelemetry', 'prometheus/': 'prometheus',
    'spdlog/': 'spdlog', 'src/core/': 'grpc',
}

# Folders of headers that are generated from .proto files.
GENERATED = ('attnd/v1/', 'google/rpc/')

# Breaches that the check has to see: a file and what it includes.
PLANTED = (
    ('base/shape.h', '"core/mask.h"'),
    ('base/shape.h', '"google/protobuf/message.h"'),
    ('proto/pieces.h', '"base/shape.h"'),
    ('proto/pieces.h', '"core/mask.h"'),
    ('core/mask.h', '<grpcpp/grpcpp.h>'),
    ('core/mask.h', '"google/protobuf/message.h"'),
    ('core/mask.h', '"attnd/v1/attention.pb.h"'),
    ('core/mask.h', '"absl/flags/flag.h"'),
    ('core/mask.h', '"server/memory/admission.h"'),
    ('core/mask.h', '"proto/message_pieces.h"'),
    ('core/mask.h', '"wire/writer.h"'),
    ('core/mask.h', '"cost/call_cost.h"'),
    ('core/machine.cc', '"core/kernels/targets.h"'),
    ('server/server.cc', '"core/kernels/forward_job.h"'),
    ('client/attnctl/main.cc', '"core/kernels/forward_job.h"'),
    ('core/kernels/flash.cc', '"spdlog/spdlog.h"'),
    ('core/kernels/flash.cc', '<CLI/CLI.hpp>'),
    ('wire/writer.h', '"core/mask.h"'),
    ('wire/writer.h', '"cost/call_cost.h"'),
    ('wire/writer.h', '<grpcpp/grpcpp.h>'),
    ('wire/writer.h', '"wire/grpc/arguments.h"'),
    ('wire/grpc/arguments.h', '"server/server.h"'),
    ('cost/call_cost.h', '"server/memory/admission.h"'),
    ('cost/call_cost.h', '"attnd/v1/attention.pb.h"'),
    ('client/attention_client.cc', '"core/mask.h"'),
    ('client/attention_client.cc', '"client/attnctl/npy.h"'),
    ('client/attention_client.cc', '<openssl/x509.h>'),
    ('client/merge.cc', '"core/mask.h"'),
    ('client/rpc_channel.cc', '"core/merge.h"'),
    ('client/attnctl/main.cc', '"server/memory/admission.h"'),
    ('server/server.h', '"client/attention_client.h"'),
    ('server/status/reasons.h', '"server/memory/admission.h"'),
    ('server/memory/admission.h', '"server/codec/wire_message.h"'),
    ('server/load/load_meter.h', '"server/connections/acceptor.h"'),
    ('server/access/token_list.h', '"server/connections/acceptor.h"'),
    ('server/connections/acceptor.h', '"server/access/caller.h"'),
    ('server/calls/stream_call.h', '"server/access/caller.h"'),
    ('server/connections/acceptor.h', '"server/calls/stall_timer.h"'),
    ('server/log/log_fields.h', '"server/process/log_sink.h"'),
    ('server/tracing/trace_context.h', '<grpcpp/grpcpp.h>'),
    ('server/codec/request_codec.h', '"server/shared_memory/region.h"'),
    ('server/codec/request_codec.h', '<grpcpp/grpcpp.h>'),
    ('server/shared_memory/region.h', '"server/planning/estimate.h"'),
    ('server/planning/estimate.h', '"server/calls/plain_calls.h"'),
    ('server/calls/stream_call.h', '"server/rpc/rpc_adapter.h"'),
    ('server/calls/stream_call.h', '<grpcpp/grpcpp.h>'),
    ('server/rpc/rpc_adapter.h', '"server/process/log_sink.h"'),
    ('server/server.cc', '<httplib.h>'),
    ('server/admin/http_port.h', '<grpcpp/grpcpp.h>'),
    ('server/rpc/rpc_adapter.h', '"server/admin/http_port.h"'),
    ('server/process/log_sink.h', '"server/server_config.h"'),
    ('bench/core_bench.cc', '"server/server.h"'),
    ('tests/core/mask_test.cc', '"client/types.h"'),
    ('tests/client/client_test.cc', '"server/server.h"'),
)


def rule_of(path):
  """Returns the name of the row of RULES that is for `path`, or None."""
  names = [str(path), *map(str, pathlib.PurePath(path).parents)]
  return next((name for name in names if name in RULES), None)


def is_allowed(rule, header):
  """Returns whether files under `rule` may include `header`."""
  folders, libraries = map(str.split, RULES[rule])
  for start, library in LIBRARIES.items():
    if header.startswith(start):
      return library in libraries
  if header.startswith(GENERATED):
    return rule == 'proto' or 'proto' in folders
  if header.startswith('tests/'):
    return 'tests' in folders
  target = rule_of(header)
  # None is a header of the standard library or of the system.
  return target in (None, rule, *folders) or header in folders


def breaches(root):
  """Returns a line for each #include under `root` that RULES forbid."""
  found = []
  for path in sorted(root.rglob('*')):
    name = path.relative_to(root)
    rule = rule_of(name)
    if path.suffix not in ('.cc', '.h') or rule is None:
      continue
    for line in path.read_text(encoding='utf-8').splitlines():
      include = re.match(r'\s*#\s*include\s*[<"]([^>"]+)[>"]', line)
      if include and not is_allowed(rule, include[1]):
        found.append(f'{name} may not include {include[1]}')
  return found


def finds(file, include):
  """Returns whether a planted `file` with that include is found."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, file)
    path.parent.mkdir(parents=True)
    path.write_text(f'#include {include}\n', encoding='utf-8')
    return len(breaches(pathlib.Path(folder))) == 1


def check_for_circles():
  """Raises graphlib.CycleError if RULES let folders include each other."""
  graphlib.TopologicalSorter(
      {rule: folders.split() for rule, (folders, _) in RULES.items()}).prepare()


def main(repository):
  missed = [plant for plant in PLANTED if not finds(*plant)]
  if missed:
    sys.exit(f'the check does not see these breaches: {missed}')
  check_for_circles()
  found = breaches(pathlib.Path(repository))
  if found:
    sys.exit('\n'.join(found))


if __name__ == '__main__':
  if len(sys.argv) != 2:
    sys.exit(__doc__)
  main(sys.argv[1])
