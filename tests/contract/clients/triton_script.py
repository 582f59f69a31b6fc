"""Run in a process of its own: stock tritonclient's stubs and ours register the same protobuf package.

Arguments: server address, .npy file of images uint8 [N, C, H, W]. Prints what the server answered, as JSON.
"""

import asyncio
import io
import json
import queue
import sys

import grpc
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

MODEL = "tiny"


def main() -> None:
    address, images_file = sys.argv[1:]
    images = np.load(images_file)
    tensor = pixels(images)
    with triton.InferenceServerClient(address) as client:
        report = (
            facts(client)
            | ask(client, tensor, images)
            | {"streamed": ask_over_a_stream(client, images), "errors": errors_of(client)}
            | asyncio.run(ask_asynchronously(address, images))
            | {"typed_logits": ask_with_typed_contents(address, images)}
        )
        report["executions"] = client.get_inference_statistics(MODEL, "2").model_stats[0].execution_count
    print(json.dumps(report))


def facts(client: triton.InferenceServerClient) -> dict:
    config = client.get_model_config(MODEL).config
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(MODEL),
        "server": client.get_server_metadata().name,
        "shape": list(client.get_model_metadata(MODEL).inputs[0].shape),
        "config": [config.max_batch_size, [output.name for output in config.output]],
        "index": [
            (model.name, model.version, model.state) for model in client.get_model_repository_index().models
        ],
    }


def ask(client: triton.InferenceServerClient, tensor: triton.InferInput, images: np.ndarray) -> dict:
    answer = client.infer(MODEL, [tensor], request_id="42")
    later: queue.Queue = queue.Queue()
    client.async_infer(MODEL, [tensor], lambda result, error: later.put(error or result))
    return {
        "id": answer.get_response().id,
        "version": answer.get_response().model_version,
        "logits": answer.as_numpy("logits").tolist(),
        "probabilities": answer.as_numpy("probabilities").tolist(),
        "called_back_logits": taken(later).as_numpy("logits").tolist(),
        "classes": classes_of(client, tensor),
        "file_logits": client.infer(MODEL, [files(images)]).as_numpy("logits").tolist(),
    }


def classes_of(client: triton.InferenceServerClient, tensor: triton.InferInput) -> list[list[str]]:
    wanted = triton.InferRequestedOutput("probabilities", class_count=2)
    answer = client.infer(MODEL, [tensor], outputs=[wanted])
    return [[element.decode() for element in row] for row in answer.as_numpy("probabilities")]


def ask_over_a_stream(client: triton.InferenceServerClient, images: np.ndarray) -> list:
    """A request an image, and one among them that is wrong: an id with its logits, or the error.

    Each says whether it is the last answer to its request, which is all that such clients wait for.
    """
    answers: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: answers.put(error or result))
    for index, image in enumerate(images):
        client.async_stream_infer(
            MODEL, [pixels(image[None])], request_id=str(index), enable_empty_final_response=True
        )
        if index == 1:
            client.async_stream_infer(MODEL, [pixels(image[None, :, 1:])], request_id="wrong")
    streamed = [answers.get(timeout=20) for _ in range(len(images) + 1)]
    client.stop_stream()
    for answer in streamed:
        if not isinstance(answer, InferenceServerException):
            assert answer.get_response().parameters["triton_final_response"].bool_param
    return [
        answer.message()
        if isinstance(answer, InferenceServerException)
        else [answer.get_response().id, answer.as_numpy("logits").tolist()]
        for answer in streamed
    ]


async def ask_asynchronously(address: str, images: np.ndarray) -> dict:
    async def requests():
        for index, image in enumerate(images):
            yield {"model_name": MODEL, "inputs": [pixels(image[None])], "request_id": str(index)}

    async with triton_aio.InferenceServerClient(address) as client:
        wanted = [triton_aio.InferRequestedOutput("logits")]
        answers = await asyncio.gather(
            *(client.infer(MODEL, [pixels(image[None])], outputs=wanted) for image in images)
        )
        streamed = []
        async for result, error in client.stream_infer(requests()):
            if error is not None:
                raise error
            streamed.append([result.get_response().id, result.as_numpy("logits").tolist()])
        return {
            "aio_logits": [answer.as_numpy("logits")[0].tolist() for answer in answers],
            "aio_streamed": streamed,
        }


def ask_with_typed_contents(address: str, images: np.ndarray) -> list:
    """Triton's stub, but with the pixels as typed contents, which its client never sends."""
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    tensor = request.inputs.add(name="image", datatype="UINT8", shape=images.shape)
    tensor.contents.uint_contents.extend(images.ravel().tolist())
    request.outputs.add(name="logits")
    with grpc.insecure_channel(address) as channel:
        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    return triton.InferResult(answer).as_numpy("logits").tolist()


def errors_of(client: triton.InferenceServerClient) -> list[tuple[str, str]]:
    floats = triton.InferInput("image", [1, 1, 8, 8], "FP32")
    floats.set_data_from_numpy(np.zeros((1, 1, 8, 8), np.float32))
    found = []
    for name, tensor in ((MODEL, floats), ("nets", pixels(np.zeros((1, 1, 8, 8), np.uint8)))):
        try:
            client.infer(name, [tensor])
        except InferenceServerException as error:
            found.append((error.status(), error.message()))
    return found


def pixels(images: np.ndarray) -> triton.InferInput:
    tensor = triton.InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(np.ascontiguousarray(images))
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


def taken(answers: queue.Queue) -> triton.InferResult:
    answer = answers.get(timeout=20)
    if isinstance(answer, Exception):
        raise answer
    return answer


main()
