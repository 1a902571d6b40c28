#!/usr/bin/env bash
# Prints the folder of promtool and prometheus. Those in PATH are taken, else Debian's package is unpacked below target/: an
# installed package would start a server with the machine. Prints nothing and fails where neither can be had.
set -euo pipefail
cd "$(dirname "$0")/.."

if command -v promtool >/dev/null && command -v prometheus >/dev/null; then
    dirname "$(command -v promtool)"
    exit
fi
place=$PWD/target/prometheus
if [[ ! -d $place ]]; then
    command -v apt-get >/dev/null || exit 1
    mkdir -p target
    made=$(mktemp -d -p target prometheus.XXXXXX)
    trap 'rm -rf "$made"' EXIT
    fetch() { (cd "$made" && apt-get -qq -o APT::Sandbox::User=root download prometheus) >/dev/null 2>&1; }
    # The lists of packages may be missing or old. Only root can bring new ones.
    fetch || { [[ $EUID -eq 0 ]] && apt-get -qq update >/dev/null 2>&1 && fetch; } || exit 1
    dpkg-deb --extract "$made"/prometheus_*.deb "$made"
    # Another run may have been faster.
    mv -T "$made" "$place" 2>/dev/null || [[ -d $place ]]
fi
echo "$place/usr/bin"
