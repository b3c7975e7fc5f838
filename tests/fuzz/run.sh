#!/usr/bin/env bash
# ./dev fuzz: builds the fuzz targets with clang and runs them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=.ci/setup.sh
. .ci/setup.sh

readonly FUZZ_TARGETS=(answer call request shm_protocol)
readonly PROGRAMS=build/fuzz/tests/fuzz
# Short stacks and a short quarantine make AddressSanitizer fast.
export ASAN_OPTIONS=malloc_context_size=2:quarantine_size_mb=4

usage() {
  cat <<'EOF'
usage: tests/fuzz/run.sh [--runs=N | --seconds=N | --build-only] [--update-corpus]
                         [TARGET...]

Builds the fuzz targets with clang. Gives each of them N inputs (default 1000000), or
inputs for N seconds. Without a TARGET it runs all: answer, call, request and
shm_protocol, as many at a time as there are processors. They start from
tests/fuzz/corpus, from the seeds in their sources, and from build/fuzz/corpus, which
keeps what earlier runs found. build/fuzz also keeps the output of each target
(TARGET.log) and the inputs that failed.

--update-corpus then replaces tests/fuzz/corpus with the fewest inputs of all these that
reach the same code.
EOF
}

# fuzz TARGET LIMIT: runs a target until LIMIT, a flag of libFuzzer. libFuzzer's
# entropic schedule is off because it takes a third of the time.
fuzz() {
  local corpus=build/fuzz/corpus/$1 log=build/fuzz/$1.log status=0 finding
  mkdir -p "$corpus"
  cmake -E chdir "$corpus" cmake -E tar xf "$PWD/tests/fuzz/corpus/$1.tar.xz"
  "$PROGRAMS/$1_replay" --write="$corpus"
  "$PROGRAMS/$1_fuzz" "$corpus" "$2" -max_len=4096 -entropic=0 \
    -dict="tests/fuzz/$1.dict" -artifact_prefix="build/fuzz/$1-" \
    >"$log" 2>&1 || status=$?
  if [[ $status == 0 ]]; then
    printf '%s: %s; %s\n' "$1" \
      "$(grep '^Done ' "$log")" "$(grep -o 'INITED.*\|DONE.*' "$log" | tr '\n' ' ')"
    return
  fi
  finding=$(sed -n 's/.*Test unit written to //p' "$log" | tail -1)
  printf '%s: FAILED\n%s\n%s\n' "$1" "$(tail -n 60 "$log")" \
    "${finding:+$finding as base64: $(base64 -w0 "$finding")}"
  return 1
}

# update_corpus TARGET: keeps the inputs of the corpus that reach something which no
# smaller one reaches. The archive is the same for the same inputs.
update_corpus() {
  local least
  setup_packages xz-utils
  least=$(mktemp -d)
  "$PROGRAMS/$1_fuzz" -merge=1 -max_len=4096 "$least" "build/fuzz/corpus/$1" \
    >"build/fuzz/$1-merge.log" 2>&1 || { tail "build/fuzz/$1-merge.log" && return 1; }
  tar -C "$least" --sort=name --owner=0 --group=0 --numeric-owner --mode=0644 \
    --mtime=@0 -cf - . | xz -9e >"tests/fuzz/corpus/$1.tar.xz"
  rm -rf "$least"
}

main() {
  local arg limit=-runs=1000000 update=no targets=()
  for arg in "$@"; do
    case $arg in
      --runs=[1-9]*) limit=-runs=${arg#--runs=} ;;
      --seconds=[1-9]*) limit=-max_total_time=${arg#--seconds=} ;;
      --build-only) limit='' ;;
      --update-corpus) update=yes ;;
      --help | -h) usage && exit ;;
      -*) die "fuzz takes --runs=N, --seconds=N, --build-only, --update-corpus and" \
        "targets, got '$arg'" ;;
      *) targets+=("$arg") ;;
    esac
  done
  [[ ${#targets[@]} -gt 0 ]] || targets=("${FUZZ_TARGETS[@]}")
  ./dev build fuzz "${targets[@]/%/_fuzz}" "${targets[@]/%/_replay}"
  [[ -n $limit ]] || return 0
  say "fuzzing ${targets[*]} (${limit#-}); the output is in build/fuzz/TARGET.log"
  export PROGRAMS
  export -f fuzz
  # shellcheck disable=SC2016  # bash -c expands these.
  printf '%s\n' "${targets[@]}" |
    xargs -P "$(nproc)" -I{} bash -c 'set -euo pipefail; fuzz "$@"' fuzz {} "$limit"
  [[ $update == no ]] || for arg in "${targets[@]}"; do update_corpus "$arg"; done
}

main "$@"
