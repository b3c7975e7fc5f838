#!/usr/bin/env bash
# Counts the files that a number among the options of attention touches, by those
# that name the soft cap of scores. docs/architecture.md says why each of them
# does. More files mean that one of them repeats what base/attention_options.def
# has already.
#
#   option_files_test.sh ROOT
set -euo pipefail

max_files=8
cd "$1"
folders=()
for folder in base core cost client proto server wire; do
  [[ -d $folder ]] && folders+=("$folder")
done
mapfile -t files < <(
  grep -rliE 'soft[_-]?cap' "${folders[@]}" docs/numerics.md | sort)
printf '%s\n' "${files[@]}"
if ((${#files[@]} == 0 || ${#files[@]} > max_files)); then
  echo "expected 1 to $max_files files, got ${#files[@]}" >&2
  exit 1
fi

# The documentation lists exactly these.
for file in "${files[@]}"; do
  if ! grep -qF "\`$file\`" docs/architecture.md; then
    echo "docs/architecture.md does not say why an option touches $file" >&2
    exit 1
  fi
done
