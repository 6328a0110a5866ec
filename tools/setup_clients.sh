#!/usr/bin/env bash
# Makes what holds other people's programs, which tests run: environments in .venv-clients, two of clients of the OpenAI
# API and one of what looks at manifests and images; and the packages of the client for Node where there is a Node. Quick
# when there is nothing to do.
# What is installed is locked in locks/ and in the lock of npm: see docs/dependencies.md. `tools/setup.sh test` comes first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=.venv/bin/python
folder=.venv-clients
node=tests/gateway/clients/node
# The types of custom resources, to which manifests are held.
types=tests/kubernetes/node
stamp=$folder/.set-up
has_node=
if command -v node >/dev/null && command -v npm >/dev/null; then
    has_node=node
fi
state="$PWD $(cat tools/setup_clients.sh locks/clients*.txt locks/manifests.txt $node/package-lock.json $types/package-lock.json | sha256sum) $(readlink -f $python) $has_node"

if [ -f $stamp ] && [ "$(cat $stamp)" = "$state" ]; then
    exit 0
fi

# uv takes a tenth of pip's time, but does not read pip's configuration: an index or a proxy may stand only there.
install() {
    .venv/bin/uv pip install --quiet --compile-bytecode --python "$1" --require-hashes --requirement "$2" --only-binary :all: ||
        $python -m pip --python "$1" --disable-pip-version-check install --quiet --require-hashes --requirement "$2"
}

echo "set-up: installing clients of the OpenAI API and linters into $folder (about 1.3 GB; nothing afterwards)"
for name in clients clients-pinned manifests; do
    $python -m venv --clear --without-pip $folder/$name
    install $folder/$name/bin/python locks/$name.txt
done
if [ -n "$has_node" ]; then
    for packages in $node $types; do
        npm ci --prefix $packages --ignore-scripts --no-audit --no-fund --loglevel=error
    done
fi
echo "$state" >$stamp
