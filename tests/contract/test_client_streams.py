"""Streams of both clients: answers in order, errors of single requests, and callers that fail or stop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np
import pytest

from foldserve import AsyncClient, Client
from foldserve.serving.errors import DeadlineExceededError, InvalidArgumentError, NotFoundError, ServingError
from tests.support.encoded_images import encode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from foldserve.serving.client.messages import Classification
    from foldserve.serving.client.streams import StreamAnswer
    from tests.support.artifacts import TinyNetwork
    from tests.support.server_process import ServerProcess

# More than the server takes in advance, so that both sides wait for each other.
COUNT = 200


def pictures(network: TinyNetwork) -> list[bytes]:
    return [encode(image[0]) for image in network.random_images(COUNT)]


def test_outputs_come_in_order_and_equal_those_of_single_calls(
    server: ServerProcess, network: TinyNetwork
) -> None:
    images = network.random_images(COUNT)
    batches = [images[index : index + 1] for index in range(COUNT)]
    with Client(server.address) as client:
        whole = client.infer("tiny", images)
        rows = [answer.result() for answer in client.infer_stream("tiny", iter(batches))]

    async def ask(*, is_async: bool) -> list[dict[str, NDArray[np.float32]]]:
        async def arriving() -> AsyncIterator[NDArray[np.uint8]]:
            for batch in batches:
                await asyncio.sleep(0)
                yield batch

        async with AsyncClient(server.address) as client:
            given = arriving() if is_async else batches
            return [answer.result() async for answer in client.infer_stream("tiny", given)]

    for answers in (rows, asyncio.run(ask(is_async=True)), asyncio.run(ask(is_async=False))):
        for name, values in whole.items():
            assert np.array_equal(np.concatenate([answer[name] for answer in answers]), values)


def test_a_bad_image_is_answered_with_its_error_and_ends_nothing_else(
    server: ServerProcess, network: TinyNetwork
) -> None:
    files = pictures(network)
    with Client(server.address) as client:
        expected = client.classify("tiny", files, top_k=2, min_confidence=0.5)
        files[7] = b"bad"
        answers = list(client.classify_stream("tiny", files, top_k=2, min_confidence=0.5))

    async def ask() -> list[StreamAnswer[Classification]]:
        async with AsyncClient(server.address) as client:
            return [
                answer async for answer in client.classify_stream("tiny", files, top_k=2, min_confidence=0.5)
            ]

    for each in (answers, asyncio.run(ask())):
        assert len(each) == COUNT
        assert isinstance(each[7].error, InvalidArgumentError)
        with pytest.raises(InvalidArgumentError, match="not an image"):
            each[7].result()
        for index, answer in enumerate(each):
            if index != 7:
                classification = answer.result()
                assert classification.labels == [expected.labels[index]]
                assert classification.unknown == [expected.unknown[index]]
                assert classification.sha256 == expected.sha256


def test_a_bad_batch_is_answered_with_a_text(server: ServerProcess, network: TinyNetwork) -> None:
    good, bad = network.random_images(1), np.zeros((1, 1, 3, 3), np.uint8)
    with Client(server.address) as client:
        first, second, third = client.infer_stream("tiny", [good, bad, good])
        with pytest.raises(ServingError, match="3, 3"):
            second.result()
        assert np.array_equal(first.result()["logits"], third.result()["logits"])


def test_what_the_callers_images_raise_comes_after_the_answers_before_it(
    server: ServerProcess, network: TinyNetwork, tmp_path: Path
) -> None:
    (tmp_path / "sound.png").write_bytes(pictures(network)[0])
    paths = [tmp_path / "sound.png", tmp_path / "missing.png", tmp_path / "sound.png"]
    with Client(server.address) as client:
        answers = client.classify_stream("tiny", paths)
        assert next(answers).result().labels
        with pytest.raises(FileNotFoundError, match=r"missing\.png"):
            next(answers)

    async def ask() -> None:
        async with AsyncClient(server.address) as client:
            answers = client.classify_stream("tiny", paths)
            assert (await anext(answers)).result().labels
            with pytest.raises(FileNotFoundError, match=r"missing\.png"):
                await anext(answers)

    asyncio.run(ask())


def test_a_caller_may_stop_reading_an_endless_stream(server: ServerProcess, network: TinyNetwork) -> None:
    def endless() -> Iterator[NDArray[np.uint8]]:
        while True:
            yield network.random_images(1)

    with Client(server.address) as client:
        stream = client.infer_stream("tiny", endless())
        assert next(stream).result()["logits"].shape == (1, 3)
        stream.close()  # type: ignore[attr-defined]  # a generator
        # The connection is as good as before.
        assert client.infer("tiny", network.random_images(1))["logits"].shape == (1, 3)

    async def ask() -> None:
        async with AsyncClient(server.address) as client:
            async for _ in client.infer_stream("tiny", endless()):
                break
            assert (await client.infer("tiny", network.random_images(1)))["logits"].shape == (1, 3)

    asyncio.run(ask())


def test_a_stream_ends_at_its_deadline(server: ServerProcess, network: TinyNetwork) -> None:
    async def ask() -> None:
        async def waiting() -> AsyncIterator[NDArray[np.uint8]]:
            yield network.random_images(1)
            await asyncio.Event().wait()

        async with AsyncClient(server.address) as client:
            stream = client.infer_stream("tiny", waiting(), timeout_s=2.0)
            with pytest.raises(DeadlineExceededError):
                [answer async for answer in stream]

    asyncio.run(ask())


def test_an_unknown_model_is_named_in_every_answer(server: ServerProcess, network: TinyNetwork) -> None:
    with Client(server.address) as client:
        answers = list(client.classify_stream("nets", pictures(network)[:3]))
    assert [type(answer.error) for answer in answers] == [NotFoundError] * 3
