#!/usr/bin/env bash
# Fails if a program that contains gRPC and what it is built from also loads a
# shared copy of one of them. Two copies of protobuf or Abseil can crash it.
#
#   static_grpc_test.sh PROGRAM...
set -euo pipefail

for program in "$@"; do
  libraries=$(ldd "$program")
  if grep -E 'lib(absl_|gpr|grpc|protobuf|re2|upb)' <<<"$libraries"; then
    echo "expected $program to load none of these libraries" >&2
    exit 1
  fi
done
