#!/usr/bin/env bash
# ./dev fuzz: builds the fuzz targets with clang and runs them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=.ci/setup.sh
. .ci/setup.sh

readonly FUZZ_TARGETS=(answer call request shm_protocol)

usage() {
  cat <<'EOF'
usage: tests/fuzz/run.sh [--runs=N] [TARGET...]

Builds the fuzz targets with clang and gives each of them N inputs (default 1000000).
Without a TARGET it runs all: answer, call, request and shm_protocol. build/fuzz keeps
the corpus and the findings.
EOF
}

# fuzz TARGET RUNS: starts from the target's seeds and the corpus of earlier runs.
# libFuzzer's entropic schedule is off because it takes a third of the time. Short
# stacks and a short quarantine make AddressSanitizer fast.
fuzz() {
  local programs=build/fuzz/tests/fuzz corpus=build/fuzz/corpus/$1
  say "fuzzing $1: $2 inputs"
  mkdir -p "$corpus"
  "$programs/$1_replay" --write="$corpus"
  ASAN_OPTIONS=malloc_context_size=2:quarantine_size_mb=4 \
    "$programs/$1_fuzz" "$corpus" -runs="$2" -max_len=4096 -entropic=0 \
    -dict="tests/fuzz/$1.dict" -artifact_prefix="build/fuzz/$1-"
}

main() {
  local arg runs=1000000 targets=()
  for arg in "$@"; do
    case $arg in
      --runs=[1-9]*) runs=${arg#--runs=} ;;
      --help | -h) usage && exit ;;
      -*) die "fuzz takes --runs=N and targets, got '$arg'" ;;
      *) targets+=("$arg") ;;
    esac
  done
  [[ ${#targets[@]} -gt 0 ]] || targets=("${FUZZ_TARGETS[@]}")
  setup_packages "${PACKAGES[@]}" clang libclang-rt-dev
  ./dev build fuzz "${targets[@]/%/_fuzz}" "${targets[@]/%/_replay}"
  for arg in "${targets[@]}"; do fuzz "$arg" "$runs"; done
}

main "$@"
