#!/usr/bin/env bash
# ./dev lint: checks the sources without running them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=.ci/setup.sh
. .ci/setup.sh

usage() {
  cat <<'EOF'
usage: .ci/lint.sh [--only=STEP] [--fix] [--accept-proto] [PATH...]

  format  clang-format
  tidy    clang-tidy, about four minutes
  proto   buf's lint, and whether the contract breaks clients of proto/attention.binpb
  shell   shellcheck

Runs all four, or STEP alone. PATHs limit format and tidy to files below them. --fix
reformats. --accept-proto makes today's proto the one that later ones may not break.
EOF
}

# sources PATTERN [PATH...]: prints the files of the work tree whose names match. Each
# name ends with a NUL.
sources() {
  local pattern=$1
  shift
  git ls-files -z --cached --others --exclude-standard --deduplicate -- "$@" |
    grep -zE "$pattern" | xargs -0r ls -d 2>/dev/null | tr '\n' '\0' || true
}

lint_format() {
  local mode=(--dry-run --Werror --ferror-limit=1)
  [[ $fix == no ]] || mode=(-i)
  sources '\.(cc|h)$' "$@" | xargs -0r "$VENV/bin/clang-format" "${mode[@]}"
}

lint_tidy() {
  cmake --preset tidy --log-level=WARNING >build/configure.log 2>&1 ||
    { cat build/configure.log >&2 && return 1; }
  # Only the generated headers are needed. clang-tidy compiles all else itself.
  cmake --build build/tidy --target \
    proto/gen/attnd/v1/attention.grpc.pb.cc \
    proto/gen/google/rpc/{code,status,error_details}.pb.cc \
    bench/gen/bench/echo.grpc.pb.cc >/dev/null
  sources '\.cc$' "$@" | only_compiled |
    xargs -0r -n 1 -P "$(nproc)" "$VENV/bin/clang-tidy" --quiet -p build/tidy
}

# Prints those of the files on stdin that the tidy preset compiles, which are not all:
# tests/house has sources that another build compiles.
only_compiled() {
  local file
  while IFS= read -r -d '' file; do
    if grep -qF "\"$PWD/$file\"" build/tidy/compile_commands.json; then
      printf '%s\0' "$file"
    else
      echo "not checked, because preset tidy does not compile it: $file" >&2
    fi
  done
}

lint_proto() {
  local buf="$PWD/$VENV/bin/buf"
  cd proto
  "$buf" lint
  if [[ $accept_proto == yes ]]; then
    "$buf" build --exclude-source-info -o attention.binpb
    say "proto/attention.binpb now has the current contract; commit it and say why"
  fi
  "$buf" breaking --against attention.binpb
}

lint_shell() {
  shellcheck -x dev .ci/run
  sources '\.sh$' | xargs -0r shellcheck -x
}

main() {
  local only='' fix=no accept_proto=no paths=() failed=() arg step
  for arg in "$@"; do
    case $arg in
      --only=*) only=${arg#--only=} ;;
      --fix) fix=yes ;;
      --accept-proto) accept_proto=yes only=proto ;;
      --help | -h) usage && exit ;;
      -*) die "lint does not know $arg" ;;
      *) paths+=("$arg") ;;
    esac
  done
  case $only in
    format | tidy | proto | shell)
      setup_packages
      setup_python .ci/lint-requirements.txt
      mkdir -p build
      "lint_$only" "${paths[@]}"
      ;;
    '')
      # Each step has a shell of its own, because `set -e` has no effect left of `||`.
      for step in format proto shell tidy; do
        say "lint: $step"
        .ci/lint.sh --only="$step" "$@" || failed+=("$step")
      done
      [[ ${#failed[@]} == 0 ]] || die "lint failed: ${failed[*]}"
      say "lint is clean"
      ;;
    *) die "--only is one of format, proto, shell and tidy, got '$only'" ;;
  esac
}

main "$@"
