#!/bin/sh
# rootfs.sh FOLDER BINARY...: makes FOLDER a root file system that holds the
# stripped binaries, what they load, and those libraries' licences, which ask
# to be passed on.
set -eu
root=$1
shift
mkdir -p "$root/usr/bin"
for binary; do
  strip -o "$root/usr/bin/$(basename "$binary")" "$binary"
done
# "lib => /path (address)", and the loader alone on a line of its own.
ldd "$@" | grep -oE '/[^ ]+ \(' | cut -d' ' -f1 | sort -u |
  while read -r library; do
    cp -L --parents "$library" "$root"
    # By name: dpkg may know it below /usr/lib and the loader below /lib. dpkg
    # adds lines about files that a package has moved out of the way.
    dpkg -S "*/$(basename "$library")" | grep -v '^diversion by ' |
      cut -d: -f1 | sort -u |
      while read -r package; do
        cp --parents "/usr/share/doc/$package/copyright" "$root"
      done
  done
