"""Writes a version's README.md, the model card, from its manifest and metadata alone.

Equal manifests and metadata give equal cards: nothing in it tells the time, and as in the other files neither
the model's name nor the version's number, which are those of the folders. The head is that of a Hugging Face
model card.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from foldserve.artifact.manifest_facts import entry
from foldserve.text import escape_controls

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from foldserve.artifact.format import ModelMetadata
    from foldserve.imaging import ImageSpec

UNSTATED = "not stated"
_CLASSES_SHOWN = 100
# Characters that Markdown or HTML would act upon within a line of a table.
_MARKUP = str.maketrans({each: f"\\{each}" for each in "\\|`*_[]#"} | {"<": "&lt;", "&": "&amp;"})


def model_card(manifest: Mapping[str, Any], metadata: ModelMetadata) -> str:
    """Return the card of the version whose complete ``manifest`` has the hashes of the other files."""
    return (
        "\n\n".join(
            [
                _head(manifest),
                f"# Image classifier of {len(metadata.labels):,} classes",
                _purpose(manifest, metadata),
                f"## Data\n\n{_data(manifest, metadata)}",
                f"## Accuracy\n\n{_accuracy(manifest)}",
                f"## Calibration\n\n{_calibration(manifest, metadata)}",
                f"## Preprocessing\n\n{_preprocessing(metadata)}",
                f"## How to call it\n\n{_calls()}",
                f"## Licence\n\n{_plain(manifest.get('license') or UNSTATED)}",
                f"## Files\n\n{_files(manifest)}",
            ]
        )
        + "\n"
    )


def _head(manifest: Mapping[str, Any]) -> str:
    # JSON texts are YAML's too. "unknown" is the Hub's word.
    licence = json.dumps(manifest.get("license") or "unknown")
    return (
        f"---\nlicense: {licence}\nlibrary_name: foldserve\npipeline_tag: image-classification\n"
        "tags:\n- onnx\n- image-classification\n---"
    )


def _purpose(manifest: Mapping[str, Any], metadata: ModelMetadata) -> str:
    purpose = manifest.get("purpose") or f"Purpose: {UNSTATED}."
    source = entry(manifest, "source")
    network = metadata.provenance.get("architecture") or source.get("onnx_file") or "own network"
    shown = ", ".join(_plain(label) for label in metadata.labels[:_CLASSES_SHOWN])
    more = len(metadata.labels) - _CLASSES_SHOWN
    return (
        f"{_plain(purpose)}\n\nNetwork: {_plain(network)}, precision "
        f"{_plain(manifest.get('precision', 'fp32'))}. Classes: {shown}"
        f"{f' and {more:,} more' if more > 0 else ''}."
    )


def _data(manifest: Mapping[str, Any], metadata: ModelMetadata) -> str:
    dataset = metadata.provenance.get("dataset") or entry(manifest, "source").get("dataset")
    golden = entry(manifest, "golden")
    proof = f"It carries {golden['count']:,} golden pairs from {_plain(golden['source'])}." if golden else ""
    return f"Trained on: {_plain(dataset or UNSTATED)}. {proof}".rstrip()


def _accuracy(manifest: Mapping[str, Any]) -> str:
    accuracy = entry(manifest, "accuracy")
    if accuracy.get("after") is None:
        return "Not measured: no images with labels were given."
    text = (
        f"{accuracy['after']:.2%} on {accuracy['image_count']:,} {_plain(accuracy['images'])}, measured on "
        "this file."
    )
    classes = manifest.get("classes") or []
    if not classes:
        return text
    rows = [
        f"| {_plain(each['label'])} | {each['image_count']:,} | {_share(each['accuracy'])} |"
        for each in classes[:_CLASSES_SHOWN]
    ]
    table = "\n".join(["| class | images | right |", "|---|---|---|", *rows])
    more = len(classes) - _CLASSES_SHOWN
    return f"{text} By class, for the network before folding:\n\n{table}" + (
        f"\n\nmanifest.json has {more:,} more classes." if more > 0 else ""
    )


def _calibration(manifest: Mapping[str, Any], metadata: ModelMetadata) -> str:
    calibration = entry(manifest, "calibration")
    if not calibration:
        return "Not calibrated: a probability may be further from the share of right answers than it says."
    if calibration["reason"]:
        return f"Not calibrated: {_plain(calibration['reason'])}."
    before, after = calibration["error_before"], calibration["error_after"]
    text = (
        f"probabilities = softmax(logits / {metadata.temperature:g}), in the graph. The temperature was "
        f"fitted on {calibration['image_count']:,} {_plain(calibration['images'])}: expected calibration "
        f"error {before:.2%} before, {after:.2%} after."
    )
    if test := calibration.get("test"):
        text += (
            f" On the {test['image_count']:,} test images: {test['error_before']:.2%} before, "
            f"{test['error_after']:.2%} after."
        )
    return text


_FITS = {
    "shorter-side": "the shorter side is scaled to {} and the centre cropped",
    "crop": "scaled to cover the input and the centre cropped",
    "pad": "scaled to lie within the input, and mirrored at the borders",
    "stretch": "stretched to the input",
}


def fit_text(image: ImageSpec) -> str:
    """Return in words how a picture of another size becomes the input."""
    return _FITS[image.fit].format(image.resize_shorter_side)


def _preprocessing(metadata: ModelMetadata) -> str:
    image = metadata.image
    colours = "grey" if image.channel_order == "L" else "RGB"
    return (
        f"Input `image`: uint8 [N, {image.channels}, {image.height}, {image.width}], {colours}, 0 to 255. "
        f"Other sizes: {fit_text(image)} (bilinear, antialiased); turned "
        "upright by EXIF, transparency over white. The graph computes "
        f"(pixel / 255 - mean) / std with mean {list(metadata.mean)} and std {list(metadata.std)}: do not "
        "apply it again.\n\n"
        "Outputs: `logits` and `probabilities`, float32 [N, "
        f"{len(metadata.labels)}], in the order of the labels in the file's metadata."
    )


def _calls() -> str:
    return (
        "```sh\nfoldserve predict models/NAME FOLDER --out labels.jsonl   # without a server\n"
        "foldserve evaluate models/NAME --data FOLDER\nfoldserve serve --repository models\n"
        "foldserve classify --model NAME picture.png\n```\n\n"
        "```python\nfrom foldserve import LocalModel\n\nwith LocalModel('models/NAME') as model:\n"
        "    print(model.predict(['picture.png']).labels())\n```"
    )


def _files(manifest: Mapping[str, Any]) -> str:
    rows = [
        f"| `{name}` | {facts['bytes']:,} | `{facts['sha256']}` |"
        for name, facts in manifest["files"].items()
    ]
    tools = ", ".join(f"{tool} {version}" for tool, version in entry(manifest, "tools").items())
    table = "\n".join(["| file | bytes | SHA-256 |", "|---|---|---|", *rows])
    return table + (f"\n\nMade with {_plain(tools)}." if tools else "")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _plain(text: object) -> str:
    """Return text as one line in which nothing is markup."""
    return escape_controls(str(text)).translate(_MARKUP)


def class_accuracies(
    labels: Iterable[str], counts: Iterable[int], right: Iterable[int]
) -> list[dict[str, Any]]:
    """Return the manifest's ``classes``: the share of right answers; None for a class without images."""
    return [
        {"label": label, "image_count": count, "accuracy": hits / count if count else None}
        for label, count, hits in zip(labels, counts, right, strict=True)
    ]
