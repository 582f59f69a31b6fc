"""How large a message may be follows from the flag, else from what serves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from foldserve.serving.services.message_limit import MessageLimit

MIB = 2**20


class Serving:
    """Stands for the repository: the models that serve, with their images' shape and largest batch."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, int, int], int]] = {}

    def ready_models(self) -> list[Any]:
        return [
            SimpleNamespace(
                name=name,
                version=1,
                input=SimpleNamespace(shape=(-1, *shape)),
                settings=SimpleNamespace(max_batch_size=batch),
            )
            for name, (shape, batch) in self.shapes.items()
        ]


def limit_of(serving: Serving, max_bytes: int | None = None) -> MessageLimit:
    return MessageLimit(serving, max_bytes)  # type: ignore[arg-type]


def test_default_limit_follows_the_largest_served_model() -> None:
    serving = Serving()
    limit = limit_of(serving)
    assert limit.max_bytes() == 32 * MIB
    serving.shapes["small"] = ((1, 28, 28), 32)
    assert limit.max_bytes() == 32 * MIB, "room for encoded images, whatever the model"
    serving.shapes["large"] = ((3, 224, 224), 256)
    full_typed_batch = 2 * 256 * 3 * 224 * 224
    assert full_typed_batch < limit.max_bytes() < full_typed_batch + MIB
    assert limit.allows(limit.max_bytes())
    assert not limit.allows(limit.max_bytes() + 1)
    assert not limit.too_small_for()
    del serving.shapes["large"]
    assert not limit.allows(full_typed_batch)


def test_default_limit_is_bounded_and_names_models_it_is_too_small_for() -> None:
    serving = Serving()
    serving.shapes["huge"] = ((3, 1024, 1024), 32)
    limit = limit_of(serving)
    assert limit.max_bytes() == limit.wire_bytes == 128 * MIB
    assert limit.too_small_for() == {"huge/1": 193}


def test_flag_overrides_the_default_limit() -> None:
    serving = Serving()
    serving.shapes["large"] = ((3, 224, 224), 256)
    limit = limit_of(serving, 2 * MIB)
    assert limit.max_bytes() == 2 * MIB
    assert limit.allows(2 * MIB)
    assert not limit.allows(2 * MIB + 1)
    assert limit.wire_bytes == 4 * MIB, "messages just over it are refused with our text"
    assert limit.too_small_for() == {"large/1": 74}


def test_typed_pixels_are_accepted_up_to_a_full_batch() -> None:
    serving = Serving()
    for limit in (limit_of(serving), limit_of(serving, 2000 * MIB)):
        serving.shapes.clear()
        assert limit.max_typed_bytes() == 8 * MIB
        serving.shapes["large"] = ((3, 224, 224), 256)
        assert 2 * 256 * 3 * 224 * 224 < limit.max_typed_bytes() < 74 * MIB
