#!/usr/bin/env bash
# What ./dev and the scripts beside it share: messages, Debian packages and Python
# environments. Source it from the root of the repository.
# shellcheck disable=SC2034  # Not every script that sources this uses all of it.

readonly VENV=build/venv
readonly PEERS_VENV=build/venv-peers

# The packages that building, testing and linting need on a bare Debian.
readonly PACKAGES=(
  ca-certificates git shellcheck python3 python3-venv
  cmake g++ ninja-build
  libabsl-dev libgrpc++-dev libhwy-dev libprotobuf-dev libspdlog-dev
  protobuf-compiler protobuf-compiler-grpc golang-github-gogo-googleapis-dev
  libcli11-dev libcpp-httplib-dev libssl-dev nlohmann-json3-dev openssl pkgconf
  prometheus-cpp-dev
  libbenchmark-dev libgmock-dev libgtest-dev
)
# These are installed too, where the release of Debian has them. Debian 12 does not.
readonly OPTIONAL_PACKAGES=(opentelemetry-cpp-dev)

# What the preset fuzz needs in addition: clang with its sanitizers and libFuzzer.
readonly FUZZ_PACKAGES=(clang libclang-rt-dev)

# What the preset arm64 needs in addition: the cross compiler, QEMU to run what it
# compiled, and mmdebstrap to fetch the libraries for arm64.
readonly ARM64_PACKAGES=(g++-aarch64-linux-gnu mmdebstrap qemu-user)
readonly ARM64_SYSROOT=build/arm64-sysroot

say() { printf '==> %s\n' "$*"; }
die() {
  printf '%s: %s\n' "$0" "$*" >&2
  exit 2
}

as_root() {
  if [[ $(id -u) == 0 ]]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    die "needs root or sudo to run: $*"
  fi
}

# missing_packages PACKAGE...: prints those that are not installed, one a line.
missing_packages() {
  comm -23 <(printf '%s\n' "$@" | sort) \
    <(dpkg-query -W -f='${db:Status-Status} ${Package}\n' "$@" \
      2>/dev/null | sed -n 's/^installed //p' | sort)
}

# setup_packages [PACKAGE...]: installs the missing ones of these, or of PACKAGES. Waits
# until another command of ./dev has installed what it needs.
setup_packages() {
  local optional=()
  [[ $# -gt 0 ]] || { set -- "${PACKAGES[@]}" && optional=("${OPTIONAL_PACKAGES[@]}"); }
  if ! command -v apt-get >/dev/null; then
    say "there is no apt-get, so these Debian packages have to be installed" \
      "under other names: $*"
    return
  fi
  mkdir -p build
  (
    flock 9
    mapfile -t missing < <(missing_packages "$@")
    [[ ${#missing[@]} -gt 0 ]] || exit 0
    say "installing Debian packages: ${missing[*]}"
    as_root apt-get update -qq
    for package in "${optional[@]}"; do
      ! apt-cache show "$package" >/dev/null 2>&1 || missing+=("$package")
    done
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
      -o Dpkg::Use-Pty=0 --no-install-recommends "${missing[@]}"
  ) 9>build/packages.lock
}

# setup_arm64: installs the cross compiler, and unpacks Debian's libraries for arm64 into
# ARM64_SYSROOT. They are not installed, because that would need a second architecture in
# dpkg. The folder is made again if the list of packages changes. Source docker/engine.sh
# before you call this.
setup_arm64() {
  local compiler libraries package stamp
  setup_packages "${ARM64_PACKAGES[@]}"
  compiler=$(aarch64-linux-gnu-g++ -dumpversion)
  # The CMake file of gRPC checks that its compiler plugins exist.
  libraries=("libstdc++-${compiler%%.*}-dev" protobuf-compiler-grpc)
  for package in "${PACKAGES[@]}"; do
    [[ $package != *-dev || $package == golang-* ]] || libraries+=("$package")
  done
  stamp=$ARM64_SYSROOT/$(sha256sum <<<"${libraries[*]}" | cut -c1-16).unpacked
  [[ ! -e $stamp ]] || return 0
  say "unpacking Debian's libraries for arm64 into $ARM64_SYSROOT"
  as_root rm -rf --one-file-system "$ARM64_SYSROOT"
  debian_sources "$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)" |
    as_root mmdebstrap --quiet --variant=extract --mode=root --architectures=arm64 \
      --keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
      --include="$(IFS=, && echo "${libraries[*]}")" '' "$ARM64_SYSROOT" -
  as_root touch "$stamp"
}

# setup_prometheus: unpacks Debian's packages of Prometheus and promtool into
# build/prometheus. They are not installed, because that would start a server.
setup_prometheus() {
  local folder=build/prometheus package
  [[ ! -x $folder/usr/bin/promtool ]] || return 0
  if ! command -v apt-get >/dev/null; then
    say "there is no apt-get, so put prometheus and promtool into $folder/usr/bin"
    return
  fi
  say "unpacking Debian's package prometheus into $folder"
  mkdir -p "$folder"
  (
    cd "$folder" || exit
    apt-get download -qq prometheus 2>/dev/null ||
      { as_root apt-get update -qq && apt-get download -qq prometheus; } >&2
    # In Debian 12, promtool is in the same package.
    if apt-cache show promtool >/dev/null 2>&1; then
      apt-get download -qq promtool
    fi
    for package in ./*.deb; do
      dpkg-deb --extract "$package" .
      rm "$package"
    done
  )
}

# setup_python REQUIREMENTS [VENV]: installs them into VENV, a Python environment,
# unless this very file has been installed there before.
setup_python() {
  local requirements=$1 venv=${2:-$VENV} stamp
  stamp="$venv/$(sha256sum "$requirements" | cut -c1-16).installed"
  [[ ! -e $stamp ]] || return 0
  say "installing Python packages into $venv:" \
    "$(grep -v '^#' "$requirements" | tr '\n' ' ')"
  [[ -x $venv/bin/pip ]] || python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet -r "$requirements"
  touch "$stamp"
}
