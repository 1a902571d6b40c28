#!/usr/bin/env bash
# Serves a second instance, on ports of its own, from the Postgres and Redis of a `make run` that is running.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ ! -e .devstack/environment ]]; then
    echo 'another: there is nothing to join; start `make run` first, in another terminal' >&2
    exit 1
fi
# shellcheck source=/dev/null
. .devstack/environment
export GRPC_ADDR=${ANOTHER_GRPC_ADDR:-127.0.0.1:50052}
export ADMIN_ADDR=${ANOTHER_ADMIN_ADDR:-127.0.0.1:9465}
exec target/release/hotshelf serve
