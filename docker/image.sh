#!/usr/bin/env bash
# ./dev image: builds the container image of attnd, and tests it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=.ci/setup.sh
. .ci/setup.sh
# shellcheck source=docker/engine.sh
. docker/engine.sh

readonly IMAGE=attnd:latest
readonly IMAGE_DEBIAN=trixie

usage() {
  cat <<'EOF'
usage: docker/image.sh [--fresh] [--test]

Builds the container image from docker/Dockerfile on a bare Debian, with docker or,
where no engine answers, with buildah. Tags it attnd:VERSION and attnd:latest.

  --fresh  take no layer of an earlier build, so that the packages are Debian's
           newest
  --test   then run the image, call it, and check its size, docker/compose.yaml and
           deploy/kubernetes
EOF
}

version() {
  sed -n 's/^project(attnd VERSION \([^ ]*\).*/\1/p' CMakeLists.txt
}

revision() { git describe --always --dirty --abbrev=40 --exclude='*'; }

# Prints the address of the remote repository, without a user or a password. Prints
# nothing if the remote is not an address that everybody can open.
source_url() {
  { git config --get remote.origin.url || true; } |
    sed -nE 's#^(https?://)([^/]*@)?#\1#p'
}

# Prints the labels that differ from build to build, one a line. The base has no
# base.* label of OCI: these promise that the image contains the base's layers.
image_labels() {
  local label=org.opencontainers.image url
  url=$(source_url)
  echo "$label.version=$(version)"
  echo "$label.revision=$(revision)"
  [[ -z $url ]] || echo "$label.source=$url"
  echo "attnd.build-base=$base_origin"
}

# build_image [ARGUMENTS]: builds the image on `base` with `labels`, and passes ARGUMENTS
# on to the engine.
build_image() {
  local arguments
  # The labels are not build arguments of the Dockerfile, because buildah would then
  # reuse a cached layer that has the label of another revision.
  arguments=("$@" -t "$IMAGE" -t "attnd:$(version)" -f docker/Dockerfile
    --build-arg "BASE=$base" "${labels[@]/#/--label=}")
  [[ -z $base_sources ]] ||
    arguments+=(--secret "id=apt-sources,src=$base_sources")
  if ! docker_answers; then
    # The format is docker's, because OCI's has no HEALTHCHECK. With --layers, a
    # second build is short. Docker needs none of these flags.
    arguments+=(--format docker --layers
      --ignorefile docker/Dockerfile.dockerignore)
  fi
  say "building the image $IMAGE on $base_origin"
  engine build "${arguments[@]}" .
}

# Podman runs an image that buildah built. It uses runc, because crun fails if both
# versions of cgroups are mounted.
test_image() {
  local engine=docker
  setup_packages podman runc
  command -v kubectl >/dev/null || setup_packages kubernetes-client
  setup_python tests/e2e/requirements.txt
  setup_python tests/image/requirements.txt
  docker_answers || engine="podman --runtime=runc"
  say "testing the image"
  as_root env ATTND_ENGINE="$engine" \
    ATTND_LABELS="$(printf '%s\n' "${labels[@]}")" ATTND_APT_SOURCES="$base_sources" \
    "$VENV/bin/python" -B -m pytest -q -s -p no:cacheprovider tests/image
}

main() {
  local arg base base_origin base_sources cache=() labels test=no
  for arg in "$@"; do
    case $arg in
      --fresh) cache=(--no-cache) ;;
      --test) test=yes ;;
      --help | -h) usage && exit ;;
      *) die "image takes --fresh and --test, got '$arg'" ;;
    esac
  done
  # Another command can be making the same base or the same image.
  mkdir -p build
  exec 8>build/bases.lock
  flock 8
  setup_engine
  debian_base "$IMAGE_DEBIAN"
  # Once: a commit during the build must not change what the test expects.
  mapfile -t labels < <(image_labels)
  build_image "${cache[@]}"
  exec 8>&-
  [[ $test == no ]] || test_image
}

main "$@"
