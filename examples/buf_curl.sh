#!/bin/sh
# Calls the gRPC API with `buf curl` (https://buf.build/docs/installation, or pip install buf-bin), which learns the
# messages from the server by reflection:
#
#     ./examples/buf_curl.sh MODEL PICTURE [HOST:PORT]
set -eu
model=$1 picture=$2 server=http://${3:-127.0.0.1:8001}
ask() { buf curl --protocol grpc --http2-prior-knowledge --reflect --data "$2" "$server/$1"; }

ask inference.GRPCInferenceService/ServerReady '{}'
ask inference.GRPCInferenceService/ModelMetadata "{\"name\": \"$model\"}"
# The labels of a picture, which the server decodes and scales as training did.
ask foldserve.v1.Classifier/Classify "{\"model_name\": \"$model\", \"top_k\": 2,
  \"images\": [\"$(base64 "$picture" | tr -d '\n')\"]}"
