#!/usr/bin/env bash
# Checks the dependency rule by reading #include lines:
#   client -> proto <- server -> core, and nothing points at server.
# First checks, with test files, that it finds each kind of violation.
set -euo pipefail

# includes ROOT FOLDER PATTERN: prints the #include lines of FOLDER that match.
includes() {
  grep -rnE "^[[:space:]]*#[[:space:]]*include[[:space:]]*[<\"]($3)" \
    --include='*.h' --include='*.cc' "$1/$2" || true
}

# breaches ROOT: prints every #include that the rule forbids.
breaches() {
  local root=$1 folder
  includes "$root" core \
    'grpc|google/|attnd/v1/|spdlog|CLI|nlohmann|absl/flags|proto/|server/|client/'
  includes "$root" proto 'core/|server/|client/'
  includes "$root" server 'client/'
  # attnctl can use core for commands that work offline, and the library can use the merge
  # of core. Both need only the standard library.
  includes "$root" client 'core/' | grep -v "^$root/client/attnctl" |
    grep -vE "^$root/client/merge.cc:.*core/(merge|half_float)\.h" || true
  for folder in client bench; do
    includes "$root" "$folder" 'server/'
  done
  includes "$root" tests/core 'server/|client/'
  includes "$root" tests/client 'server/'
}

# plant FILE INCLUDE: creates a file with that line, and fails unless it is found.
plant() {
  local root
  root=$(mktemp -d)
  mkdir -p "$root"/{core/kernels,client/attnctl,proto,server,bench} \
    "$root"/tests/{core,client}
  printf '#include %s\n' "$2" >"$root/$1"
  local found
  found=$(breaches "$root")
  rm -r "$root"
  if [[ -z $found ]]; then
    echo "the check is blind to $2 in $1" >&2
    exit 1
  fi
}

plant core/mask.h '<grpcpp/grpcpp.h>'
plant core/mask.h '"google/protobuf/message.h"'
plant core/mask.h '"attnd/v1/attention.pb.h"'
plant core/kernels/flash.cc '"spdlog/spdlog.h"'
plant core/kernels/flash.cc '<CLI/CLI.hpp>'
plant core/mask.h '"absl/flags/flag.h"'
plant core/mask.h '"server/memory/admission.h"'
plant core/mask.h '"proto/message_pieces.h"'
plant proto/message_pieces.h '"core/mask.h"'
plant server/server.h '"client/attention_client.h"'
plant client/attention_client.cc '"core/mask.h"'
plant client/merge.cc '"core/mask.h"'
plant client/rpc_channel.cc '"core/merge.h"'
plant client/attnctl/main.cc '"server/memory/admission.h"'
plant tests/client/client_test.cc '"server/server.h"'

found=$(breaches "$1")
if [[ -n $found ]]; then
  printf 'includes against the dependency rule:\n%s\n' "$found" >&2
  exit 1
fi
