#!/bin/sh
# Trains your own network on a folder of pictures (PICTURES/CLASS/*.png) and exports it, ready to be served:
#
#     cd examples/own_network && ./train_and_export.sh PICTURES MODELS
#
# The current folder must be the one that networks.py is in. Flags behind the two folders go to `foldserve train`.
set -eu
pictures=$1 models=$2
shift 2
foldserve train --arch networks:tiny_net --dataset "$pictures" --image-size 28 --run-dir runs/tiny "$@"
foldserve export runs/tiny --arch networks:tiny_net --repository "$models" --name tiny
echo "Serve it: foldserve serve --repository $models"
