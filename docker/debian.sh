#!/usr/bin/env bash
# ./dev debian: runs a command of ./dev on another release of Debian.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=.ci/setup.sh
. .ci/setup.sh
# shellcheck source=docker/engine.sh
. docker/engine.sh

usage() {
  cat <<'EOF'
usage: docker/debian.sh RELEASE COMMAND [ARGUMENTS]

Runs ./dev COMMAND [ARGUMENTS] in a fresh container of bare Debian RELEASE (such as
bookworm or trixie), with docker or, where no engine answers, with buildah. The
container sees this checkout. It builds in build/debian-RELEASE.
EOF
}

# Adds to `flags` the settings with which this machine reaches the network: those of
# pip, proxies and certificates. Files that they name are mounted below /host.
share_network_settings() {
  local name value volume
  # Without this, pip would trust its own list of authorities instead of the machine's.
  local -x PIP_CERT=${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}
  [[ ! -e /etc/pip.conf ]] || flags+=(--volume=/etc/pip.conf:/etc/pip.conf:ro)
  for name in $(compgen -e |
    grep -E '^PIP_|^SSL_CERT_FILE$|_CA_BUNDLE$|_CA_CERTS$|_(proxy|PROXY)$'); do
    value=${!name}
    if [[ $value == /* && -e $value ]]; then
      volume="--volume=$value:/host$value:ro"
      [[ " ${flags[*]} " == *" $volume "* ]] || flags+=("$volume")
      value=/host$value
    fi
    flags+=(--env="$name=$value")
  done
}

main() {
  local base base_origin base_sources container flags release=${1:-}
  [[ $release != --help && $release != -h ]] || { usage && exit; }
  [[ $release =~ ^[a-z]+$ && $# -ge 2 ]] ||
    die "debian takes the name of a release and a command, such as" \
      "'debian trixie test', got '$*'"
  shift
  # Another command can be making the same base.
  mkdir -p build
  exec 8>build/bases.lock
  flock 8
  setup_engine
  debian_base "$release"
  exec 8>&-
  mkdir -p "build/debian-$release"
  flags=(--volume="$PWD:/attnd" --volume="$PWD/build/debian-$release:/attnd/build")
  [[ -z $base_sources ]] ||
    flags+=(--volume="$base_sources:/etc/apt/sources.list:ro")
  share_network_settings
  say "running ./dev $* on $base_origin"
  if docker_answers; then
    docker run --rm --init --network=host "${flags[@]}" --workdir=/attnd \
      "$base" ./dev "$@"
  else
    container=$(engine from "$base")
    # shellcheck disable=SC2064  # The variable is local, so gone when the trap runs.
    trap "engine rm '$container' >/dev/null" EXIT
    engine run "${flags[@]}" --workingdir=/attnd "$container" -- ./dev "$@"
  fi
}

main "$@"
