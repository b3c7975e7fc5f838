#!/usr/bin/env bash
# Installs attnd, and builds and runs an application that uses both the client library
# and generated code of google.rpc.
#
#   installed_client_test.sh BUILD_FOLDER GOOGLE_RPC_PROTOS
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

DESTDIR='' cmake --install "$1" --prefix "$work/prefix" >"$work/log"

# Checks that the archives define no symbol of google.rpc.
for archive in "$work"/prefix/lib*/*.a "$work"/prefix/lib*/*/*.a; do
  [[ -f $archive ]] || continue
  echo "looking into ${archive##*/}"
  if nm --demangle --defined-only "$archive" | grep -F 'google::rpc::'; then
    echo "${archive##*/} defines the symbols above" >&2
    exit 1
  fi
done

# Checks that the files that docs/deployment.md names are installed.
share=$work/prefix/share/attnd/proto/attnd/v1
for file in attention.proto attention_grpc_service_config.json; do
  [[ -f $share/$file ]] || { echo "$file is not installed" >&2 && exit 1; }
done

cmake -S "$here/installed_client" -B "$work/build" -G Ninja \
  -DCMAKE_PREFIX_PATH="$work/prefix" -DGOOGLE_RPC_PROTOS="$2"
cmake --build "$work/build"
"$work/build/installed_client"
