"""Run by .venv-interop, where OpenVINO is: runs a model.onnx on images, without foldserve and ONNX Runtime.

Arguments: the file, .npy file of images uint8 [N, C, H, W]. Prints logits and probabilities as JSON.
"""

import json
import sys

import numpy as np
import openvino

model_file, images_file = sys.argv[1:]
compiled = openvino.Core().compile_model(model_file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
answers = compiled({"image": np.load(images_file)})
print(json.dumps({name: answers[name].tolist() for name in ("logits", "probabilities")}))
