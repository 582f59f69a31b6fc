#!/bin/sh
# Generates the Go stubs from protos/ and builds ./classify, in this folder or in the one given:
#
#     apt install golang-go protobuf-compiler protoc-gen-go-1-3 protoc-gen-go-grpc golang-google-grpc-dev
#     ./build.sh
#
# Debian's packages are enough, without a network. With Go's own modules instead: `go mod init example.com/classify`
# and `go mod tidy` after the stubs were generated, then `go build`.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
out=$(CDPATH= cd -- "${1:-$here}" && pwd)
sources=$out/gopath/src/example.com/classify
mkdir -p "$sources"
cp "$here/classify.go" "$sources/"
sed '/^package /a option go_package = "example.com/classify/foldservev1";' "$here/../../protos/classifier.proto" \
  > "$out/classifier.proto"
protoc --proto_path="$out" --go_out="$out/gopath/src" --go-grpc_out="$out/gopath/src" classifier.proto
cd "$sources"
GO111MODULE=off GOFLAGS= GOPATH="$out/gopath:/usr/share/gocode" go build -o "$out/classify" .
