"""Unloads and loads a model with stock tritonclient, for the reason that triton_script.py gives.

Arguments: server address, name of a model. Prints what the server answered after each step, as JSON.
"""

import json
import sys

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException


def main() -> None:
    address, name = sys.argv[1:]
    with triton.InferenceServerClient(address) as client:
        steps = [step(client, name)]
        client.unload_model(name)
        steps.append(step(client, name))
        client.load_model(name)
        steps.append(step(client, name))
        try:
            client.load_model("nets")
        except InferenceServerException as error:
            steps.append([error.status(), error.message()])
    print(json.dumps(steps))


def step(client: triton.InferenceServerClient, name: str) -> list:
    """Whether the model is ready, its state in the index, and how an inference ends."""
    tensor = triton.InferInput("image", [1, 1, 8, 8], "UINT8")
    tensor.set_data_from_numpy(np.zeros((1, 1, 8, 8), np.uint8))
    try:
        ended = client.infer(name, [tensor]).get_response().model_version
    except InferenceServerException as error:
        ended = error.status()
    states = [model.state for model in client.get_model_repository_index().models if model.name == name]
    return [client.is_model_ready(name), states, ended]


main()
