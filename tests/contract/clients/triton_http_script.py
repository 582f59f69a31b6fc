"""Run in a process of its own, like triton_script.py; the same client, over HTTP.

Arguments: server address, .npy file of images uint8 [N, C, H, W]. Prints what the server answered, as JSON.
"""

import io
import json
import sys

import numpy as np
import tritonclient.http as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

MODEL = "tiny"


def main() -> None:
    address, images_file = sys.argv[1:]
    images = np.load(images_file)
    with triton.InferenceServerClient(address) as client:
        report = {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model_ready": client.is_model_ready(MODEL),
            "server": client.get_server_metadata()["name"],
            "shape": client.get_model_metadata(MODEL)["inputs"][0]["shape"],
            "max_batch_size": client.get_model_config(MODEL)["max_batch_size"],
            "index": client.get_model_repository_index(),
            **{way: logits(client, images, **options) for way, options in WAYS.items()},
            "file_logits": client.infer(MODEL, [files(images)]).as_numpy("logits").tolist(),
            "classes": classes_of(client, images),
            "errors": [error_of(client, "FP32", MODEL), error_of(client, "UINT8", "nets")],
        }
        stats = client.get_inference_statistics(MODEL, "2")["model_stats"][0]
        report["executions"] = stats["execution_count"]
        client.unload_model(MODEL)
        report["unloaded"] = client.is_model_ready(MODEL)
        client.load_model(MODEL)
        report["loaded"] = client.is_model_ready(MODEL)
    print(json.dumps(report))


WAYS = {
    "logits": {},
    "json_logits": {"binary": False},
    "gzip_logits": {"request_compression_algorithm": "gzip"},
    "deflate_logits": {"request_compression_algorithm": "deflate"},
    "compressed_answer_logits": {"response_compression_algorithm": "gzip"},
}


def logits(
    client: triton.InferenceServerClient, images: np.ndarray, *, binary: bool = True, **options: str
) -> list:
    outputs = [triton.InferRequestedOutput("logits", binary_data=binary)]
    answer = client.infer(MODEL, [pixels(images, binary)], outputs=outputs, request_id="42", **options)
    assert (answer.get_response()["id"], answer.get_response()["model_version"]) == ("42", "2")
    return answer.as_numpy("logits").tolist()


def classes_of(client: triton.InferenceServerClient, images: np.ndarray) -> list[list[str]]:
    wanted = triton.InferRequestedOutput("probabilities", class_count=2)
    answer = client.infer(MODEL, [pixels(images, binary=True)], outputs=[wanted])
    return [[element.decode() for element in row] for row in answer.as_numpy("probabilities")]


def error_of(client: triton.InferenceServerClient, datatype: str, model: str) -> list[str]:
    tensor = triton.InferInput("image", [1, 1, 8, 8], datatype)
    tensor.set_data_from_numpy(np.zeros((1, 1, 8, 8), {"FP32": np.float32, "UINT8": np.uint8}[datatype]))
    try:
        client.infer(model, [tensor])
    except InferenceServerException as error:
        return [error.status(), error.message()]
    raise AssertionError("the call succeeded")


def pixels(images: np.ndarray, binary: bool) -> triton.InferInput:
    tensor = triton.InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images, binary_data=binary)
    return tensor


def files(images: np.ndarray) -> triton.InferInput:
    """The same images, as PNGs."""
    contents = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image[0]).save(buffer, "PNG")
        contents.append(buffer.getvalue())
    tensor = triton.InferInput("image", [len(contents)], "BYTES")
    tensor.set_data_from_numpy(np.array(contents, dtype=np.object_))
    return tensor


main()
