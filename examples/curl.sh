#!/bin/sh
# Calls the REST API with curl; the server has to run with --http:
#
#     ./examples/curl.sh MODEL PICTURE [HOST:PORT]
set -eu
model=$1 picture=$2 server=http://${3:-127.0.0.1:8000}
ask() { curl --silent --show-error --fail-with-body "$@" && echo; }

# Is it ready, and what does the model take and answer?
ask "$server/v2/health/ready"
ask "$server/v2/models/$model"
# The labels of a picture, which the server decodes and scales as training did.
ask --data-binary "@$picture" "$server/v2/models/$model/classify?top_k=2"
# Probabilities of a picture, by the Open Inference Protocol.
printf '{"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"content_type": "base64"},
  "data": ["%s"]}], "outputs": [{"name": "probabilities"}]}' "$(base64 "$picture" | tr -d '\n')" |
  ask --json @- "$server/v2/models/$model/infer"
