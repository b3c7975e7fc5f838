#!/usr/bin/env bash
# ./dev bench: builds and runs a bench, and publishes what a whole run measured.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=.ci/setup.sh
. .ci/setup.sh

usage() {
  cat <<'EOF'
usage: bench/run.sh core|micro|scheduler|planning|serve|peers|pytorch-server|
                    capacity|goodput [ARGUMENTS]

  core   the attention core against this machine's peak rate of multiply-adds and
         its memory bandwidth
  micro  the parts of the core by themselves
  scheduler
         how often up to 64 workers take the lock that guards the order of jobs
  planning
         how long the answers of MemoryEstimate take to find
  serve  a server against the core, bare gRPC and plain sockets
  peers  the core beside PyTorch, ONNX Runtime, OpenVINO and ggml (7 GB of disk)
  pytorch-server
         a server beside a Python gRPC server around PyTorch (5 GB of disk)
  capacity
         the rates that attnctl estimate --rate predicts, against those that
         clients of a server reach
  goodput
         what a server under overload still answers in time, and how it shares
         itself among clients

ARGUMENTS are those of the bench; --help lists them, and --json=FILE writes the
records. Without arguments, core, serve, peers, pytorch-server and goodput measure
everything (ten minutes or more), write the records to docs/performance/*.jsonl, draw the
pictures there and renew the tables in README.md and docs.
EOF
}

# bench_core [ARGUMENTS]: without arguments, it measures everything and publishes it.
bench_core() {
  if [[ $# -gt 0 ]]; then
    build/release/bench/core_bench "$@"
    return
  fi
  setup_python bench/requirements.txt
  build/release/bench/core_bench --json=docs/performance/core.jsonl
  "$VENV/bin/python" -B bench/plot_core.py docs/performance/core.jsonl \
    docs/performance
  "$VENV/bin/python" -B bench/tables.py docs/performance/core.jsonl \
    README.md docs/performance.md
}

# bench_serve [ARGUMENTS]: the same.
bench_serve() {
  if [[ $# -gt 0 ]]; then
    build/release/bench/serve_bench "$@"
    return
  fi
  setup_python bench/requirements.txt
  build/release/bench/serve_bench --json=docs/performance/serving.jsonl
  "$VENV/bin/python" -B bench/plot_serving.py docs/performance/serving.jsonl \
    docs/performance/serving.svg
  "$VENV/bin/python" -B bench/tables.py docs/performance/serving.jsonl \
    docs/performance/serving.md
}

# bench_peers [ARGUMENTS]: the same.
bench_peers() {
  local contest=("$PEERS_VENV/bin/python" -B bench/peers/contest.py
    --attnd=build/release/bench/attnd_turns --ggml=build/peers/ggml/ggml_turns)
  if [[ $# -gt 0 ]]; then
    "${contest[@]}" "$@"
    return
  fi
  "${contest[@]}" --json=docs/performance/peers.jsonl
  "$PEERS_VENV/bin/python" -B bench/tables.py docs/performance/peers.jsonl \
    docs/performance.md
}

# bench_pytorch_server [ARGUMENTS]: the same. A missed bar is a result, so the records of
# such a run are published, too.
bench_pytorch_server() {
  local compare=("$PEERS_VENV/bin/python" -B bench/pytorch_server/compare.py)
  if [[ $# -gt 0 ]]; then
    "${compare[@]}" "$@"
    return
  fi
  local verdict=0
  "${compare[@]}" --json=docs/performance/pytorch_server.jsonl || verdict=$?
  python3 -B bench/tables.py docs/performance/pytorch_server.jsonl \
    README.md docs/performance/serving.md
  return "$verdict"
}

# bench_goodput [ARGUMENTS]: the same. A missed bar is a result, so the records of such
# a run are published, too.
bench_goodput() {
  if [[ $# -gt 0 ]]; then
    python3 -B bench/goodput.py "$@"
    return
  fi
  local verdict=0
  python3 -B bench/goodput.py --seconds=300 --small-every=1 --large-every=60 \
    --json=docs/performance/goodput.jsonl || verdict=$?
  python3 -B bench/tables.py docs/performance/goodput.jsonl \
    docs/performance/goodput.md
  return "$verdict"
}

main() {
  case ${1:-} in
    core)
      ./dev build release core_bench
      bench_core "${@:2}"
      ;;
    serve)
      ./dev build release attnd serve_bench
      bench_serve "${@:2}"
      ;;
    micro)
      ./dev build release micro_bench
      build/release/bench/micro_bench "${@:2}"
      ;;
    scheduler)
      ./dev build release scheduler_bench
      build/release/bench/scheduler_bench "${@:2}"
      ;;
    planning)
      ./dev build release planning_bench
      build/release/bench/planning_bench "${@:2}"
      ;;
    peers)
      setup_python bench/peers/requirements.txt "$PEERS_VENV"
      bench/peers/ggml/build.sh
      ./dev build release attnd_turns
      bench_peers "${@:2}"
      ;;
    pytorch-server)
      setup_python tests/peers/requirements.txt "$PEERS_VENV"
      ./dev build release attnd compare_servers
      bench_pytorch_server "${@:2}"
      ;;
    capacity)
      ./dev build release attnd attnctl call_load
      python3 -B bench/capacity_check.py "${@:2}"
      ;;
    goodput)
      ./dev build release attnd call_player
      bench_goodput "${@:2}"
      ;;
    --help | -h) usage ;;
    *)
      die "bench takes core, micro, scheduler, planning, serve, peers," \
        "pytorch-server, capacity or goodput, got '${1:-}'"
      ;;
  esac
}

main "$@"
