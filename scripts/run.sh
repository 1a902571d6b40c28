#!/usr/bin/env bash
# Attaches the table of the sample products, imports them, and serves. `make run` runs it under `devstack exec`, which starts
# private servers, makes the table, and sets DATABASE_URL and REDIS_URL.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${BINARIES:?is set by make run: the folder of the programs}" "${DATABASE_URL:?is set by devstack exec: use make run}" "${REDIS_URL:?is set by devstack exec: use make run}"
export GRPC_ADDR=${GRPC_ADDR:-127.0.0.1:50051}
export ADMIN_ADDR=${ADMIN_ADDR:-127.0.0.1:9464}

# For `make another`: the servers have other ports at each start.
printf 'export %s=%q\n' DATABASE_URL "$DATABASE_URL" REDIS_URL "$REDIS_URL" BINARIES "$BINARIES" > .devstack/environment

# .devstack stays after a run, so the second run finds the table attached.
"$BINARIES"/hotshelf attach products --if-needed --yes
products=$(mktemp "${TMPDIR:-/tmp}/hotshelf-products.XXXXXX")
trap 'rm -f "$products"' EXIT
"$BINARIES"/devstack sample-products --count 10000 > "$products"
# .devstack stays after a run, so the second run finds the products of the first.
"$BINARIES"/hotshelf import --if-empty "$products"
# exec, below, drops the EXIT trap.
rm -f "$products"

# A wildcard address can be bound but not called.
grpc=${GRPC_ADDR/#0.0.0.0:/127.0.0.1:}
admin=${ADMIN_ADDR/#0.0.0.0:/127.0.0.1:}
cat <<HELP

hotshelf serves gRPC on $grpc. Ctrl-C stops it. Try in another terminal:

  grpcurl -v -plaintext -d '{"id": 1}' $grpc hotshelf.v1.ProductService/GetProduct
  npx --yes @bufbuild/buf curl -v --protocol grpc --http2-prior-knowledge -d '{"id": 1}' http://$grpc/hotshelf.v1.ProductService/GetProduct
  curl -s http://$admin/metrics

HELP
exec "$BINARIES"/hotshelf serve
