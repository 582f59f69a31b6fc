"""Makes the preprocessing vectors: `python examples/preprocessing/make_vectors.py FOLDER`.

FOLDER gets images/, tensors/ and manifest.json. The tensors are what foldserve's server makes of the images.
Another rule or image is one more line in RULES or IMAGES.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from foldserve.artifact.format import ModelMetadata
from foldserve.imaging import ImageSpec, prepare_image

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SCHEMA_VERSION = 1
RULES = {
    "grey": ImageSpec("L", 28, 28, 28),
    "colour": ImageSpec("RGB", 32, 32, 36, decode="scaled"),
    "wide": ImageSpec("RGB", 20, 30, 32, decode="scaled"),
    "crop": ImageSpec("RGB", 20, 30, 30, decode="scaled", fit="crop"),
    "pad": ImageSpec("RGB", 20, 30, 30, decode="scaled", fit="pad"),
    "stretch": ImageSpec("L", 20, 30, 30, decode="scaled", fit="stretch"),
}


def scene(width: int, height: int) -> NDArray[np.uint8]:
    """Return pixels [H, W, 3] whose corners all differ: gradients, a disc, a bar of fine stripes."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    red = x * 255 // max(1, width - 1)
    green = y * 255 // max(1, height - 1)
    blue = 255 - (x + y) * 255 // max(1, width + height - 2)
    disc = (4 * x - width) ** 2 * height**2 + (4 * y - height) ** 2 * width**2 < (width * height) ** 2 // 2
    red, green, blue = np.where(disc, 230, red), np.where(disc, 40, green), np.where(disc, 30, blue)
    bar = (x * 8 // max(1, width) == 6) & (y * 4 // max(1, height) != 0)
    green = np.where(bar, (x + y) % 2 * 255, green)
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return an image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Return the scene in one of Pillow's modes."""
    return Image.fromarray(scene(width, height)).convert(mode)


def turned(orientation: int, width: int = 44, height: int = 30) -> bytes:
    """Return a JPEG with this EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(picture(width, height), "JPEG", quality=90, exif=exif)


def translucent(width: int, height: int) -> Image.Image:
    """Return the scene with an alpha that grows from left to right."""
    alpha = np.broadcast_to(np.linspace(0, 255, width).astype(np.uint8), (height, width))
    return Image.fromarray(np.dstack([scene(width, height), alpha]))


def palette(width: int, height: int, **options: Any) -> bytes:
    """Return a PNG of 16 colours."""
    return saved(picture(width, height).quantize(16, dither=Image.Dither.NONE), "PNG", **options)


def png_of_16_bits(pixels: NDArray[np.uint16]) -> bytes:
    """Return a PNG of 16 bits per channel of [H, W] or [H, W, 3]; Pillow writes no such colours."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def deep(width: int, height: int) -> NDArray[np.uint16]:
    """Return the scene in 16 bits, with low bytes that rounding instead of cutting would show."""
    return scene(width, height).astype(np.uint16) * 256 + 200


# Name of the file: what it tests, and its content.
IMAGES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "odd.png": ("odd sides", lambda: saved(picture(37, 53), "PNG")),
    "one_pixel.png": ("a single pixel, scaled up", lambda: saved(picture(1, 1), "PNG")),
    "strip.png": ("a strip: only its centre is taken", lambda: saved(picture(301, 5), "PNG")),
    "tower.png": ("a strip, upright", lambda: saved(picture(7, 190), "PNG")),
    "exact_28.png": ("already the size of rule grey", lambda: saved(picture(28, 28), "PNG")),
    "exact_30x20.png": ("already the size of rule wide: not scaled", lambda: saved(picture(30, 20), "PNG")),
    "small.png": ("scaled up", lambda: saved(picture(11, 9), "PNG")),
    "grey.png": ("grey", lambda: saved(picture(45, 31, "L"), "PNG")),
    "bits.png": ("one bit per pixel", lambda: saved(picture(45, 31, "1"), "PNG")),
    "grey_alpha.png": ("grey and alpha, over white", lambda: saved(translucent(45, 31).convert("LA"), "PNG")),
    "rgba.png": ("alpha, over white", lambda: saved(translucent(45, 31), "PNG")),
    "palette.png": ("a palette", lambda: palette(45, 31)),
    "palette_alpha.png": ("a palette with a transparent colour", lambda: palette(45, 31, transparency=3)),
    "grey_16.png": ("16 bits: the high byte", lambda: png_of_16_bits(deep(45, 31)[..., 1])),
    "rgb_16.png": ("16 bits per channel: the high byte", lambda: png_of_16_bits(deep(45, 31))),
    "plain.bmp": ("BMP", lambda: saved(picture(29, 41), "BMP")),
    "first_frame.gif": (
        "the first frame of an animation",
        lambda: saved(
            picture(45, 31), "GIF", save_all=True, append_images=[Image.new("RGB", (45, 31), "black")]
        ),
    ),
    "lossless.webp": ("lossless WebP", lambda: saved(picture(45, 31), "WEBP", lossless=True)),
    "lossy.webp": ("lossy WebP", lambda: saved(picture(45, 31), "WEBP", quality=80)),
    **{
        f"orientation_{number}.jpg": (
            f"EXIF orientation {number}",
            lambda number=number: turned(number),  # type: ignore[misc]  # bound at once
        )
        for number in range(1, 9)
    },
    "grey.jpg": ("grey JPEG", lambda: saved(picture(61, 47, "L"), "JPEG", quality=85)),
    "cmyk.jpg": ("CMYK JPEG", lambda: saved(picture(61, 47, "CMYK"), "JPEG", quality=85)),
    "progressive.jpg": (
        "progressive JPEG",
        lambda: saved(picture(61, 47), "JPEG", quality=85, progressive=True),
    ),
    "large.jpg": ("decoded at 1/8", lambda: saved(picture(800, 600), "JPEG", quality=60)),
    "large_odd.jpg": ("decoded at 1/8, sides that are no multiples of 8", lambda: turned(6, 723, 611)),
    "medium.jpg": ("decoded at 1/2", lambda: saved(picture(190, 150), "JPEG", quality=80)),
}


def rule_of(spec: ImageSpec) -> dict[str, Any]:
    """Return a rule as the metadata of a served model has it: ``channel_order`` and ``resize``."""
    neutral = (0.0,) * spec.channels, (1.0,) * spec.channels
    properties = ModelMetadata(("a", "b"), *neutral, spec, {}).to_properties()
    return {"channel_order": properties["channel_order"], "resize": json.loads(properties["resize"])}


def sha256(content: bytes) -> str:
    """Return the hash in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def write_vectors(folder: Path, images: dict[str, bytes]) -> None:
    """Write ``images`` (content by name), their tensors by every rule, and the manifest."""
    for part in ("images", "tensors"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    vectors = []
    for name, content in images.items():
        (folder / "images" / name).write_bytes(content)
        for rule, spec in RULES.items():
            tensor = prepare_image(content, spec).tobytes()
            file = f"tensors/{name}.{rule}.bin"
            (folder / file).write_bytes(tensor)
            vectors.append(
                {
                    "image": f"images/{name}",
                    "image_sha256": sha256(content),
                    "about": IMAGES[name][0],
                    "lossless": not name.endswith(".jpg") and name != "lossy.webp",
                    "rule": rule,
                    "tensor": file,
                    "sha256": sha256(tensor),
                    "shape": list(spec.shape),
                }
            )
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "tensors": "uint8 [channels, height, width], row by row, without a header",
        "rules": {name: rule_of(spec) for name, spec in RULES.items()},
        "vectors": vectors,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def main() -> None:
    """Make the images anew and write all vectors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    write_vectors(folder, {name: make() for name, (_, make) in IMAGES.items()})
    print(f"{folder / 'manifest.json'}: {len(IMAGES)} images, {len(RULES)} rules")


if __name__ == "__main__":
    main()
