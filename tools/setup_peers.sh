#!/usr/bin/env bash
# Installs the programs of Debian's that some tests run beside the project, where this is root, apt is there and systemd is
# not, which would start their services; says elsewhere what to install. Quick when there is nothing to do. Tests skip what
# is missing.
set -euo pipefail

# Program and the package that brings it.
peers=(
    dockerd:docker.io
    docker-compose:docker-compose
    iptables:iptables
    debootstrap:debootstrap
    promtool:prometheus
    haproxy:haproxy
    nginx:nginx-light
    caddy:caddy
    redis-server:redis-server
    faketime:faketime
)

PATH=$PATH:/usr/sbin:/sbin
missing=()
for peer in "${peers[@]}"; do
    command -v "${peer%%:*}" >/dev/null || missing+=("${peer##*:}")
done
if [ ${#missing[@]} -eq 0 ]; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ] || [ -d /run/systemd/system ] || ! command -v apt-get >/dev/null; then
    echo "set-up: tests of deployment that need these are skipped: sudo apt install ${missing[*]}"
    exit 0
fi
echo "set-up: installing ${missing[*]} for tests of deployment"
# RUNLEVEL=1: what starts services without systemd leaves them alone.
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
install() {
    apt-get install --yes --quiet=2 --no-install-recommends "$@" >/dev/null
}
if ! { apt-get update --quiet=2 && install "${missing[@]}"; }; then
    # One that this release lacks keeps none of the others away.
    for package in "${missing[@]}"; do
        install "$package" || echo "set-up: $package cannot be installed; the tests that need it are skipped"
    done
fi
