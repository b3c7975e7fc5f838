#!/bin/sh
# rootfs.sh FOLDER BINARY...: creates a root file system in FOLDER. It contains the
# stripped binaries, the libraries that they load, and the licences of these
# libraries and of those in the binaries, which have to be distributed with them.
set -eu
root=$1
shift
mkdir -p "$root/usr/bin"
for binary; do
  strip -o "$root/usr/bin/$(basename "$binary")" "$binary"
done
# ldd prints lines like "lib => /path (address)", and the loader without "=>".
ldd "$@" | grep -oE '/[^ ]+ \(' | cut -d' ' -f1 | sort -u |
  while read -r library; do
    cp -L --parents "$library" "$root"
    # Search by name, because dpkg can list the file below /usr/lib while the loader
    # finds it below /lib. dpkg also prints lines about diverted files.
    dpkg -S "*/$(basename "$library")" | grep -v '^diversion by ' |
      cut -d: -f1 | sort -u |
      while read -r package; do
        cp --parents "/usr/share/doc/$package/copyright" "$root"
      done
  done
# The packages whose archives the binaries contain (cmake/static_grpc.cmake).
for package in libabsl-dev libgrpc++-dev libgrpc-dev libprotobuf-dev libre2-dev; do
  cp --parents "/usr/share/doc/$package/copyright" "$root"
done
