#!/usr/bin/env bash
# Runs docker or buildah, and provides images of bare Debian to build and to run on.
# Source it after .ci/setup.sh.

readonly REGISTRY_DEBIAN=docker.io/library/debian

docker_answers() { docker info >/dev/null 2>&1; }

setup_engine() { docker_answers || setup_packages buildah; }

# engine COMMAND...: runs it with docker if an engine answers, else with buildah.
# Buildah isolates with chroot, which also works inside a container that has few
# privileges. It uses the machine's own storage, so that podman finds the images.
engine() {
  if docker_answers; then
    docker "$@"
  else
    as_root env BUILDAH_ISOLATION=chroot buildah "$@"
  fi
}

have_image() { engine inspect --type image "$1" >/dev/null 2>&1; }

# debian_sources RELEASE: prints apt's sources for that release of Debian. They name
# the mirror that apt uses for the release that runs here.
debian_sources() {
  # shellcheck disable=SC2016  # apt expands them
  local query=(apt-get indextargets 'Created-By: Packages' 'Origin: Debian'
    --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)') here
  here=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
  [[ -n $("${query[@]}") ]] || as_root apt-get update -qq >&2
  "${query[@]}" | awk -v here="$here" -v wanted="$1" \
    '{ sub("^" here, wanted, $3); print }' | sort -u
}

# debian_base RELEASE: makes sure that there is an image of bare Debian, from a
# registry or, if no registry answers, from debootstrap. Sets three variables:
#   base          its name. An image of a registry is named by its digest, so that
#                 every step of a build uses the same one.
#   base_origin   where it comes from, for people and for a label.
#   base_sources  a file with apt's sources that a container of it needs. It is
#                 empty for an image of a registry, which has sources of its own.
# shellcheck disable=SC2034  # The script that sources this uses them.
debian_base() {
  local release=$1 tag=$REGISTRY_DEBIAN:$1-slim
  base=localhost/attnd-debian:$release
  base_origin="debootstrap $release"
  base_sources=$PWD/build/image/apt-sources-$release
  mkdir -p build/image
  if ! have_image "$base"; then
    if engine pull -q "$tag" >build/image/pull.log 2>&1; then
      base=$REGISTRY_DEBIAN@$(image_digest "$tag")
      base_origin=$base
      base_sources=''
      return
    fi
    say "no registry has $tag: making Debian $release with debootstrap"
    debootstrap_image "$release" "$base"
  fi
  debian_sources "$release" >"$base_sources"
}

# image_digest NAME: prints the digest under which its registry has the image.
image_digest() {
  if docker_answers; then
    docker image inspect --format '{{index .RepoDigests 0}}' "$1" | sed 's/.*@//'
  else
    engine inspect --type image --format '{{.FromImageDigest}}' "$1"
  fi
}

# debootstrap_image RELEASE IMAGE: makes the image with packages from apt's mirror.
# The image does not name that mirror.
debootstrap_image() {
  local release=$1 image=$2 root mirror container
  setup_packages debootstrap
  mirror=$(debian_sources "$release" | awk -v release="$release" \
    '$3 == release && $4 == "main" { print $2; exit }')
  [[ -n $mirror ]] ||
    die "apt is not configured with a mirror of Debian '$release'"
  root=$(mktemp -d -p /var/tmp)
  as_root debootstrap --variant=minbase --include=ca-certificates \
    "$release" "$root" "$mirror" >build/image/debootstrap.log ||
    { tail build/image/debootstrap.log >&2 && return 1; }
  as_root rm -rf "$root"/var/{log/bootstrap.log,cache/apt,lib/apt/lists}
  # Those who use the image pass it the sources (base_sources).
  as_root truncate --size=0 "$root/etc/apt/sources.list"
  as_root chmod 755 "$root"
  if docker_answers; then
    as_root tar -C "$root" -c . | docker import - "$image" >/dev/null
  else
    container=$(engine from scratch)
    engine add -q "$container" "$root" / >/dev/null
    engine commit -q --rm "$container" "$image" >/dev/null
  fi
  as_root rm -rf --one-file-system "$root"
}
