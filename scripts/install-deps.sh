#!/usr/bin/env bash
# Installs what `make run` and `make test` need and this machine lacks. Does nothing, quickly, when nothing lacks.
# `bench`: what `make bench` needs, too. `--with-valgrind`: that too, where apt-get has it; `make instructions` does without
# where it has not.
#
# Only the programs are wanted: devstack starts PostgreSQL and Redis of its own, on free ports. Servers that a package
# would start (5432, 6379) are neither started by this script nor ever used.
set -euo pipefail

have() { command -v "$1" >/dev/null 2>&1; }

# Debian and Homebrew keep the server's programs off PATH.
have_postgres() {
    have initdb && have postgres && return
    compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null && return
    compgen -G '/usr/pgsql-*/bin/initdb' >/dev/null && return
    compgen -G '/opt/homebrew/opt/postgresql*/bin/initdb' >/dev/null && return
    compgen -G '/usr/local/opt/postgresql*/bin/initdb' >/dev/null
}

have_redis() { have redis-server && have redis-cli; }

stop() {
    echo "install-deps: $1" >&2
    exit 1
}

apt_packages=()
brew_packages=()
names=()
lacks() { names+=("$1") apt_packages+=("$2") brew_packages+=("$3"); }

have_postgres || lacks "a PostgreSQL server (initdb, postgres)" postgresql postgresql@17
have_redis || lacks "a Redis server (redis-server, redis-cli)" redis-server redis
# The TLS library is partly C and assembly.
have cc || lacks "a C compiler (cc)" "gcc libc6-dev" gcc

have_load_generator() { have h2load || [[ ${1:-} != bench ]]; }
have_load_generator "$@" || lacks "h2load" nghttp2-client nghttp2

can_apt() { have apt-get && { [[ $EUID -eq 0 ]] || have sudo; }; }
if [[ ${1:-} == --with-valgrind ]] && ! have valgrind && can_apt; then
    lacks valgrind valgrind ''
fi

# apt_get ARGUMENT...: as root.
apt_get() {
    local as_root=()
    if [[ $EUID -ne 0 ]]; then as_root=(sudo); fi
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120 "$@"
}

# A policy of 101 (forbidden by policy) keeps maintainer scripts from starting services. One that is there already is
# the administrator's and stays.
policy=/usr/sbin/policy-rc.d
with_services_held_back() {
    local as_root=()
    if [[ $EUID -ne 0 ]]; then as_root=(sudo); fi
    if [[ -e $policy ]]; then
        "$@"
        return
    fi
    # shellcheck disable=SC2064 # the array is meant to be expanded now
    trap "${as_root[*]} rm -f $policy" EXIT
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
    "$@"
}

if [[ ${#names[@]} -gt 0 ]]; then
    printf -v list '%s; ' "${names[@]}"
    list=${list%; }
    if can_apt; then
        echo "install-deps: installing with apt-get: ${apt_packages[*]}"
        apt_get update
        # shellcheck disable=SC2068 # an entry may name two packages
        with_services_held_back apt_get install -y --no-install-recommends ${apt_packages[@]}
    elif have brew; then
        echo "install-deps: installing with brew: ${brew_packages[*]}"
        brew install "${brew_packages[@]}"
    else
        stop "please install: $list (needs root with apt-get, or brew, to do it by itself)"
    fi
    if ! { have_postgres && have_redis && have cc && have_load_generator "$@"; }; then
        stop "installed the packages, and still cannot find all of: $list"
    fi
fi

have cargo || stop "please install Rust 1.95 or newer, from https://rustup.rs"
