"""Everything that can be wrong with one version or one model, each done to a sound version's folder.

VERSIONS has functions of a version's folder, with words of which the refusal must hold one; SETTINGS_DAMAGES
functions of a model's folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import socket
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Damage = Callable[[Path], object]

MODEL, GOLDEN, MANIFEST, SETTINGS = "model.onnx", "golden.npz", "manifest.json", "model.toml"


def mend_hashes(version: Path) -> None:
    """Write the files' hashes and sizes into the manifest, as whoever made them on purpose would."""
    manifest = json.loads((version / MANIFEST).read_text())
    for name, facts in manifest["files"].items():
        content = (version / name).read_bytes()
        facts |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (version / MANIFEST).write_text(json.dumps(manifest))


def change_manifest(version: Path, **changes: Any) -> None:
    manifest = json.loads((version / MANIFEST).read_text())
    (version / MANIFEST).write_text(json.dumps(manifest | changes))


def name_file(version: Path, name: str) -> None:
    """Have the manifest name one more file."""
    files = json.loads((version / MANIFEST).read_text())["files"]
    change_manifest(version, files=files | {name: {"sha256": "0" * 64, "bytes": 7}})


def change_golden(version: Path, **members: Any) -> None:
    """Put other arrays in the place of some in ``golden.npz``; None takes one out."""
    # From memory: np.load leaves a file open that only begins like an archive.
    with np.load(io.BytesIO((version / GOLDEN).read_bytes())) as arrays:
        kept = {name: arrays[name] for name in arrays.files}
    kept = {name: value for name, value in (kept | members).items() if value is not None}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=True, **kept)
    (version / GOLDEN).write_bytes(buffer.getvalue())
    mend_hashes(version)


def put_into_golden(version: Path, name: str, content: bytes) -> None:
    """Put a member that is not an array into ``golden.npz``."""
    import zipfile

    change_golden(version, **{name.removesuffix(".npy"): None})
    with zipfile.ZipFile(version / GOLDEN, "a") as archive:
        archive.writestr(name, content)
    mend_hashes(version)


def change_metadata(version: Path, **entries: str | None) -> None:
    """Change entries of the model's metadata_props, by their short names."""
    model = onnx.load(version / MODEL)
    props = {entry.key: entry.value for entry in model.metadata_props}
    props |= {f"foldserve.{name}": text for name, text in entries.items() if text is not None}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, props)
    (version / MODEL).write_bytes(model.SerializeToString())
    mend_hashes(version)


def break_utf8(version: Path, text: bytes) -> None:
    """Exchange one byte of a text in the model's file for one that no UTF-8 has."""
    content = (version / MODEL).read_bytes()
    assert text in content
    (version / MODEL).write_bytes(content.replace(text, b"\xff" + text[1:]))
    mend_hashes(version)


def put_in_place(path: Path, kind: str) -> None:
    """Put something that is no regular file in a file's place."""
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        short = f"/proc/self/fd/{os.open(path.parent, os.O_RDONLY)}"  # sockets' paths are short
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{short}/{path.name}")
        os.close(int(short.rpartition("/")[2]))
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "long link":
        path.symlink_to("x" * 255 + "/" + "y" * 300)
    elif kind == "secret":
        path.symlink_to("/etc/passwd")
    elif kind == "nothing":
        path.symlink_to("/nowhere/at/all")


def npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def link_out(version: Path) -> None:
    """Move a version out of the repository, and leave a link to it."""
    outside = version.parents[2] / "outside" / version.parent.name
    outside.parent.mkdir(parents=True, exist_ok=True)
    version.rename(outside)
    version.symlink_to(outside)


KINDS = ("folder", "fifo", "socket", "device", "loop", "long link", "secret", "nothing")
NO_FILE = "not a regular file", "cannot be read", "leads out of the repository", "not valid TOML"

VERSIONS: dict[str, tuple[Damage, tuple[str, ...]]] = {
    f"{name.partition('.')[0]}-{kind.replace(' ', '-')}": (
        lambda version, name=name, kind=kind: put_in_place(version / name, kind),  # type: ignore[misc]
        (name, *NO_FILE),
    )
    for name in (MODEL, GOLDEN, MANIFEST)
    for kind in KINDS
}

_MANIFESTS: dict[str, str | bytes] = {
    "infinite-schema": '{"schema_version": Infinity, "files": {}}',
    "schema-beyond-floats": '{"schema_version": 1e999, "files": {}}',
    "nan-schema": '{"schema_version": NaN, "files": {}}',
    "true-schema": '{"schema_version": true, "files": {}}',
    "text-schema": '{"schema_version": "1", "files": {}}',
    "no-schema": "{}",
    "long-schema": f'{{"schema_version": {"9" * 5000}, "files": {{}}}}',
    "nested-lists": "[" * 200_000,
    "nested-lists-whole": "[" * 200_000 + "]" * 200_000,
    "nested-objects": '{"schema_version": 1, "files": ' * 100_000,
    "a-number": "7",
    "a-null": "null",
    "no-utf-8": b'{"schema_version": 1, "\xff": {}}',
    "half-a-pair": '{"schema_version": 1, "files": {}, "precision": "\\ud800"}',
    "empty": "",
    "zeros": b"\0" * 1000,
    "large": '{"schema_version": 1, "files": {}}' + " " * 5_000_000,
    "files-null": '{"schema_version": 1, "files": null}',
    "files-text": '{"schema_version": 1, "files": "model.onnx"}',
    "files-of-numbers": '{"schema_version": 1, "files": {"model.onnx": 1, "golden.npz": 2}}',
}
VERSIONS |= {
    f"manifest-{name}": (
        lambda version, text=text: (version / MANIFEST).write_bytes(  # type: ignore[misc]
            text if isinstance(text, bytes) else text.encode()
        ),
        ("manifest.json is malformed", "bytes; it may have"),
    )
    for name, text in _MANIFESTS.items()
}

_NAMES = ("/etc/shadow", "../../x", "x" * 5000, "a\0b", "", ".", "sub/model.onnx", "weights.bin")
VERSIONS |= {
    f"manifest-names-{number}": (
        lambda version, name=name: name_file(version, name),  # type: ignore[misc]
        ("it lists",),
    )
    for number, name in enumerate(_NAMES)
}

_GOLDENS: dict[str, dict[str, Any]] = {
    "no-dimensions": {"images": np.uint8(3)},
    "logits-no-dimensions": {"runtime_logits": np.float32(3)},
    "no-images": {"images": np.zeros((0, 1, 8, 8), np.uint8)},
    "images-of-nothing": {"images": np.zeros((32, 1, 0, 8), np.uint8)},
    "no-classes": {
        "reference_logits": np.zeros((32, 0), np.float32),
        "runtime_logits": np.zeros((32, 0), np.float32),
    },
    "texts": {"images": np.array(["a", "b"])},
    "objects": {"images": np.array([{"a": 1}], dtype=object)},
    "complex-tolerance": {"reference_tolerance": np.complex128(1j)},
    "list-of-tolerances": {"reference_tolerance": np.full(3, 1e-4)},
    "text-tolerance": {"runtime_tolerance": np.array("1e-5")},
    "records": {"synthetic": np.zeros((), dtype=[("a", "u1")])},
    "dates": {"runtime_logits": np.zeros((32, 3), "datetime64[s]")},
    "missing": {"runtime_logits": None},
    "wide-tolerance": {"reference_tolerance": np.float64(1e9)},
    "wide-tolerances": {"reference_tolerance": np.float64(2.0), "runtime_tolerance": np.float64(2.0)},
    "wide-runtime-tolerance": {"runtime_tolerance": np.float64(1e-3)},
    "tolerance-of-another-precision": {"reference_tolerance": np.float64(5e-3)},
}
VERSIONS |= {
    f"golden-{name}": (
        lambda version, members=members: change_golden(version, **members),  # type: ignore[misc]
        ("golden.npz",),
    )
    for name, members in _GOLDENS.items()
}
VERSIONS |= {
    "golden-alien": (lambda version: put_into_golden(version, "images", b"no array"), ("golden.npz",)),
    "golden-alien-npy": (
        lambda version: put_into_golden(version, "images.npy", b"\x93NUMPY"),
        ("golden.npz",),
    ),
    "golden-one-array": (
        lambda version: ((version / GOLDEN).write_bytes(npy(np.zeros(3))), mend_hashes(version)),
        ("golden.npz",),
    ),
    "golden-pickle": (
        lambda version: ((version / GOLDEN).write_bytes(b"\x80\x04N."), mend_hashes(version)),
        ("golden.npz",),
    ),
}

_METADATA: dict[str, dict[str, str]] = {
    "crop-of-fractions": {"resize": '{"shorter_side": 8, "crop": [8.0, 8.0]}'},
    "crop-of-truths": {"resize": '{"shorter_side": 8, "crop": [true, true]}'},
    "crop-of-texts": {"resize": '{"shorter_side": 8, "crop": ["8", "8"]}'},
    "crop-of-three": {"resize": '{"shorter_side": 8, "crop": [8, 8, 8]}'},
    "side-of-fractions": {"resize": '{"shorter_side": 8.5, "crop": [8, 8]}'},
    "side-without-end": {"resize": '{"shorter_side": Infinity, "crop": [8, 8]}'},
    "side-too-long": {"resize": f'{{"shorter_side": {10**400}, "crop": [8, 8]}}'},
    "side-too-short": {"resize": '{"shorter_side": 7, "crop": [8, 8]}'},
    "side-negative": {"resize": '{"shorter_side": 8, "crop": [-8, 8]}'},
    "another-interpolation": {"resize": '{"shorter_side": 8, "crop": [8, 8], "interpolation": "nearest"}'},
    "resize-null": {"resize": "null"},
    "resize-nested": {"resize": "[" * 200_000},
    "mean-nan": {"mean": "[NaN]"},
    "mean-without-end": {"mean": "[1e999]"},
    "mean-text": {"mean": '["0.25"]'},
    "mean-of-three": {"mean": "[0.1, 0.2, 0.3]"},
    "mean-alone": {"mean": "0.25"},
    "std-zero": {"std": "[0.0]"},
    "std-negative": {"std": "[-1.0]"},
    "std-true": {"std": "[true]"},
    "std-empty": {"std": "[]"},
    "std-long": {"std": f"[{'9' * 5000}]"},
    "labels-numbers": {"labels": "[1, 2, 3]"},
    "labels-null": {"labels": "[null, null, null]"},
    "labels-object": {"labels": '{"a": 1}'},
    "labels-text": {"labels": '"abc"'},
    "labels-few": {"labels": '["a"]'},
    "labels-none": {"labels": "[]"},
    "labels-half-a-pair": {"labels": '["a", "b", "\\ud800"]'},
    "labels-with-controls": {"labels": '["a", "b", "\\u001b[2J"]'},
    "labels-with-newline": {"labels": '["a", "b", "c\\nd"]'},
    "labels-turned": {"labels": '["a", "b", "\\u202ec"]'},
    "colours-turned": {"channel_order": "BGR"},
    "colours-empty": {"channel_order": ""},
    "schema-long": {"schema": "9" * 5000},
    "schema-infinite": {"schema": "Infinity"},
    "schema-fraction": {"schema": "1.0"},
}
VERSIONS |= {
    f"metadata-{name}": (
        lambda version, entries=entries: change_metadata(version, **entries),  # type: ignore[misc]
        ("malformed metadata", "they must include logits"),
    )
    for name, entries in _METADATA.items()
}
VERSIONS |= {
    "metadata-no-utf-8": (lambda version: break_utf8(version, b"label 0"), ("not UTF-8",)),
    "input-no-utf-8": (
        lambda version: break_utf8(version, b"image"),
        ("not UTF-8", "cannot load the model"),
    ),
    "precision-no-text": (lambda version: change_manifest(version, precision=7), ("precision",)),
    "precision-null": (lambda version: change_manifest(version, precision=None), ("precision",)),
    "precision-with-controls": (
        lambda version: change_manifest(version, precision="fp\x1b32"),
        ("precision",),
    ),
    "precision-half-a-pair": (lambda version: change_manifest(version, precision="\udce9"), ("malformed",)),
    "precision-long": (lambda version: change_manifest(version, precision="x" * 100_000), ("precision",)),
    "model-empty": (
        lambda version: ((version / MODEL).write_bytes(b""), mend_hashes(version)),
        ("cannot load the model",),
    ),
    "version-a-link-out": (link_out, ("leads out of the repository",)),
    "version-empty": (lambda version: (shutil.rmtree(version), version.mkdir()), ("is missing",)),
}

_SETTINGS: dict[str, str | bytes] = {
    "nested-lists": "max_batch_size = " + "[" * 10_000,
    "nested-tables": "version_policy = " + "{a=" * 5_000,
    "nested-keys": "version_policy" + ".a" * 8_000 + " = 1",
    "long-number": "max_batch_size = " + "9" * 5000,
    "long-hexadecimal": "max_batch_size = 0x" + "f" * 5000,
    "long-hexadecimal-policy": "version_policy = { specific = [0x" + "f" * 5000 + "] }",
    "long-hexadecimal-texts": 'version_policy = { specific = "0x' + "f" * 5000 + '" }',
    "long-key": "x" * 15_000 + " = 1",
    "many-keys": "\n".join(f"k{number} = 1" for number in range(1500)),
    "long-line-of-spaces": " " * 16_000 + "x",
    "spaces-behind-a-key": "[cuda]\nuse_tf = 1\n" + "a" + " " * 16_000 + "= 1",
    "large": "# a comment\n" * 100_000,
    "large-nested": "max_batch_size = " + "[" * 200_000,
    "no-utf-8": b"\xff\xfe",
    "zeros": b"\0" * 100,
    "controls": "max_batch_size = \x1b",
    "nan": "max_queue_delay_ms = nan",
    "infinite": "max_queue_delay_ms = inf",
    "a-date": "max_batch_size = 1979-05-27",
    "texts-to-warm": 'warm_up_sizes = ["8"]',
    "fractions-to-warm": "warm_up_sizes = [8.0]",
}

SETTINGS_DAMAGES: dict[str, Damage] = {
    kind.replace(" ", "-"): (lambda model, kind=kind: put_in_place(model / SETTINGS, kind))  # type: ignore[misc]
    for kind in KINDS
} | {
    name: (
        lambda model, text=text: (model / SETTINGS).write_bytes(  # type: ignore[misc]
            text if isinstance(text, bytes) else text.encode()
        )
    )
    for name, text in _SETTINGS.items()
}
