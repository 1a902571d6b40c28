#!/usr/bin/env bash
# Generates the client and builds the example with Debian's packages: build.sh DIRECTORY. See README.md.
set -euo pipefail
directory=$(mkdir -p "${1:?the directory for the program}" && cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
libraries=/usr/share/gocode

for program in go protoc protoc-gen-go protoc-gen-go-grpc; do
    command -v "$program" >/dev/null || { echo "$program is missing" >&2; exit 1; }
done
[ -d "$libraries/src/google.golang.org/grpc" ] || { echo "the Go package google.golang.org/grpc is missing" >&2; exit 1; }
# Version 1.3 would panic on what protoc-gen-go makes, and other packages accept either.
grep -qs google.golang.org/protobuf "$libraries/src/github.com/golang/protobuf/go.mod" ||
    { echo "the Go package github.com/golang/protobuf is not version 1.5" >&2; exit 1; }

mkdir -p "$directory/src"
protoc -I "$here/../../proto" --go_out="$directory/src" --go-grpc_out="$directory/src" hotshelf/v1/product_service.proto
GO111MODULE=off GOPATH="$directory:$libraries" go build -o "$directory/get_product" "$here/get_product.go"
