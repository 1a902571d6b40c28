#!/usr/bin/env bash
# Serves a second instance, on other ports, with the Postgres and Redis of a running `make run`.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ ! -e .devstack/environment ]]; then
    echo 'another: no `make run` is running; start it first, in another terminal' >&2
    exit 1
fi
# shellcheck source=/dev/null
. .devstack/environment
export GRPC_ADDR=${ANOTHER_GRPC_ADDR:-127.0.0.1:50052}
export ADMIN_ADDR=${ANOTHER_ADMIN_ADDR:-127.0.0.1:9465}
exec "$BINARIES"/hotshelf serve
