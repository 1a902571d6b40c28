#!/usr/bin/env bash
# Installs the programs that `make run` and `make test` need and this machine lacks; exits at once when none is missing.
# `bench`: h2load, too. `--with-valgrind`: valgrind, too, where apt-get has it; without it `make instructions` is skipped.
#
# devstack starts private PostgreSQL and Redis servers on free ports. The script keeps the packages from starting theirs
# (5432, 6379), and nothing uses servers that run already.
set -euo pipefail

have() { command -v "$1" >/dev/null 2>&1; }

# Debian, Red Hat and Homebrew install the programs of the server outside PATH.
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
# ring, the cryptography library, has C and assembly.
have cc || lacks "a C compiler (cc)" "gcc libc6-dev" gcc

have_load_generator() { have h2load || [[ ${1:-} != bench ]]; }
have_load_generator "$@" || lacks "h2load" nghttp2-client nghttp2

can_apt() { have apt-get && { [[ $EUID -eq 0 ]] || have sudo; }; }
if [[ ${1:-} == --with-valgrind ]] && ! have valgrind && can_apt; then
    lacks valgrind valgrind ''
fi

# apt_get ARGUMENT...: runs apt-get as root.
apt_get() {
    local as_root=()
    if [[ $EUID -ne 0 ]]; then as_root=(sudo); fi
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120 "$@"
}

# policy-rc.d with the exit code 101 (forbidden by policy) keeps packages from starting services. An existing file belongs
# to the administrator and stays.
policy=/usr/sbin/policy-rc.d
with_services_held_back() {
    local as_root=()
    if [[ $EUID -ne 0 ]]; then as_root=(sudo); fi
    if [[ -e $policy ]]; then
        "$@"
        return
    fi
    # shellcheck disable=SC2064 # the array has to be expanded now
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
        # shellcheck disable=SC2068 # an element may name two packages
        with_services_held_back apt_get install -y --no-install-recommends ${apt_packages[@]}
    elif have brew; then
        echo "install-deps: installing with brew: ${brew_packages[*]}"
        brew install "${brew_packages[@]}"
    else
        stop "please install: $list (this script needs apt-get and root, or brew)"
    fi
    if ! { have_postgres && have_redis && have cc && have_load_generator "$@"; }; then
        stop "the packages are installed, and still not all of these are found: $list"
    fi
fi

have cargo || stop "please install Rust 1.95 or newer, from https://rustup.rs"
