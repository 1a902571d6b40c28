#!/usr/bin/env bash
# Migrates, imports sample products, and serves. `make run` calls it under `devstack exec`, which sets DATABASE_URL and
# REDIS_URL to the private servers that it has started.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${DATABASE_URL:?is set by devstack exec: use make run}" "${REDIS_URL:?is set by devstack exec: use make run}"
export GRPC_ADDR=${GRPC_ADDR:-127.0.0.1:50051}
export ADMIN_ADDR=${ADMIN_ADDR:-127.0.0.1:9464}

# For `make another`. The ports are new ones each time.
printf 'export %s=%q\n' DATABASE_URL "$DATABASE_URL" REDIS_URL "$REDIS_URL" > .devstack/environment

target/release/hotshelf migrate
products=$(mktemp "${TMPDIR:-/tmp}/hotshelf-products.XXXXXX")
trap 'rm -f "$products"' EXIT
target/release/devstack sample-products --count 10000 > "$products"
# .devstack outlives a run: the second one finds its products.
target/release/hotshelf import --if-empty "$products"
# The EXIT trap does not outlive the exec below.
rm -f "$products"

# An address to listen on may be a wildcard, which nobody can call.
grpc=${GRPC_ADDR/#0.0.0.0:/127.0.0.1:}
admin=${ADMIN_ADDR/#0.0.0.0:/127.0.0.1:}
cat <<HELP

hotshelf serves gRPC on $grpc. Try, in another terminal; Ctrl-C here stops it:

  grpcurl -v -plaintext -d '{"id": 1}' $grpc hotshelf.v1.ProductService/GetProduct
  npx --yes @bufbuild/buf curl -v --protocol grpc --http2-prior-knowledge -d '{"id": 1}' http://$grpc/hotshelf.v1.ProductService/GetProduct
  curl -s http://$admin/metrics

HELP
exec target/release/hotshelf serve
