#!/usr/bin/env bash
# Builds ggml_turns, which runs ggml as a contestant of ./dev bench peers.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
# shellcheck source=.ci/setup.sh
. .ci/setup.sh

if [[ $# -gt 0 ]]; then
  echo 'usage: bench/peers/ggml/build.sh

Builds build/peers/ggml/ggml_turns for this processor, from the source of ggml that
the package llama-cpp-python brings. The first run downloads that package with the
pip of build/venv-peers.' >&2
  exit 2
fi

readonly build=build/peers/ggml source=build/peers/source
if [[ ! -e $source/ggml/CMakeLists.txt ]]; then
  say "fetching ggml's source"
  "$PEERS_VENV/bin/pip" download --quiet --no-deps --no-binary :all: \
    --require-hashes -r bench/peers/ggml/requirements.txt -d build/peers
  mkdir -p "$source"
  tar -xzf build/peers/llama_cpp_python-*.tar.gz -C "$source" \
    --strip-components=3 --wildcards '*/vendor/llama.cpp/ggml'
fi
cmake -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_SOURCE="$PWD/$source/ggml" \
  -S bench/peers/ggml -B "$build" >build/configure.log 2>&1 ||
  { cat build/configure.log >&2 && exit 1; }
cmake --build "$build" -j "$(nproc)" --target ggml_turns
