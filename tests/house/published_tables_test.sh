#!/usr/bin/env bash
# published_tables_test.sh REPOSITORY
#
# Makes the tables of README.md and docs/ again from the records in
# docs/performance, in a copy, and fails if a table comes out different.
set -euo pipefail
cd "$1"

copy=$(mktemp -d)
trap 'rm -r "$copy"' EXIT
cp -r README.md docs "$copy"
mapfile -t documents < <(grep -rl --include='*.md' '^<!-- bench: ' \
  "$copy/README.md" "$copy/docs")
[[ ${#documents[@]} -gt 0 ]]

# An altered table has to come out as before, or this test would see nothing.
sed -i '/^<!-- bench: /{n;n;n;s/^|.*/| planted |/}' "${documents[@]}"
if diff -r docs "$copy/docs" >/dev/null; then
  echo 'no table follows the markers in docs' >&2
  exit 1
fi

for records in docs/performance/*.jsonl; do
  python3 -B bench/tables.py "$records" "${documents[@]}"
done
diff README.md "$copy/README.md"
diff -r docs "$copy/docs"
