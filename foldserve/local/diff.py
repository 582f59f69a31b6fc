"""Carries out `foldserve models diff`: what two versions say about themselves, and what they answer."""

from __future__ import annotations

import contextlib
import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from foldserve.artifact.format import MODEL_FILE, read_manifest
from foldserve.artifact.manifest_facts import accuracy_of, entry, origin_of
from foldserve.artifact.model_card import fit_text
from foldserve.artifact.versions import list_versions
from foldserve.errors import ArtifactError
from foldserve.local.local_model import LocalModel, answer_all, find_version
from foldserve.local.output import shown_name
from foldserve.local.sources import open_source, print_left_out
from foldserve.terminal import Terminal
from foldserve.text import escape_controls, join_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from foldserve.local.answers import Answered
    from foldserve.local.config import DiffConfig

_SHOWN_CHARACTERS = 64


def diff_versions(config: DiffConfig) -> int:
    """Print what differs between two versions; return 0 whether or not something does.

    Raises:
        ArtifactError: a version is not there, or does not prove itself.
        DataError: the images cannot be used.
    """
    with contextlib.ExitStack() as stack:
        models = [stack.enter_context(_open(config, version)) for version in (config.first, config.second)]
        facts = [_facts(model) for model in models]
        names = [f"{model.name}/{model.version}" for model in models]
        rows = [("", names[0], names[1]), *_different(*facts)]
        if len(rows) == 1:
            print(f"{names[0]} and {names[1]} are the same in all that is compared: {', '.join(facts[0])}")
        else:
            _print_rows(rows)
        if config.images is not None:
            _print_answers(config, models)
    return 0


def _open(config: DiffConfig, version: int) -> LocalModel:
    folder = config.repository / config.name
    find_version(folder)  # says what is wrong with the folder
    if version not in (versions := list_versions(folder)):
        raise ArtifactError(f"{config.name} has no version {version}; it has {', '.join(map(str, versions))}")
    return LocalModel(folder / str(version), device=config.device, load_timeout_s=config.load_timeout_s)


def _facts(model: LocalModel) -> dict[str, str]:
    """Return what is compared, by name, as text."""
    manifest, checked = read_manifest(model.path)
    metadata, image = model.metadata, model.metadata.image
    return {
        "sha256": model.hash,
        "date": _text(manifest.get("created_at")),
        "run": origin_of(manifest) or "-",
        "accuracy": _accuracy(manifest),
        "classes": f"{len(model.labels)}: {join_names(model.labels)}",
        "input": f"{image.channel_order} {image.width}x{image.height}",
        "preparation": f"{fit_text(image)}; {image.decode} decoding",
        "normalisation": f"mean {_numbers(metadata.mean)}, std {_numbers(metadata.std)}",
        "channel order": metadata.network_channel_order or image.channel_order,
        "temperature": f"{metadata.temperature:g}",
        "precision": checked.precision or "fp32",
        "bytes": f"{_size(checked.files[MODEL_FILE].bytes)}",
        **{f"provenance {key}": value for key, value in sorted(metadata.provenance.items())},
    }


def _different(first: Mapping[str, str], second: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return a row for each fact that differs. Equal beginnings of long texts are left out."""
    rows = []
    for name in dict.fromkeys((*first, *second)):
        pair = first.get(name, "-"), second.get(name, "-")
        if pair[0] != pair[1]:
            rows.append((name, *_shortened(*pair)))
    return rows


def _shortened(first: str, second: str) -> tuple[str, str]:
    longest = max(len(first), len(second))
    if longest <= _SHOWN_CHARACTERS:
        return first, second
    same = next(
        (at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )
    start = max(0, same - _SHOWN_CHARACTERS // 2)
    return tuple(  # type: ignore[return-value]  # two texts in, two out
        ("…" if start else "")
        + text[start : start + _SHOWN_CHARACTERS]
        + ("…" if len(text) > start + _SHOWN_CHARACTERS else "")
        for text in (first, second)
    )


@dataclass
class _Answers:
    """Counts equal and different answers; holds the images whose probabilities differ most."""

    most_shown: int
    image_count: int = 0
    broken_count: int = 0
    different_count: int = 0
    largest_logit: float = 0.0
    largest_probability: float = 0.0
    shown: list[tuple[float, int, str]] = field(default_factory=list)

    def add(self, answered: Answered) -> None:
        first, second = answered.predictions
        self.broken_count += sum(map(bool, answered.errors))
        self.image_count += len(first)
        labels, confidences = (first.labels(), second.labels()), (first.confidences(), second.confidences())
        if first.names == second.names and len(first):
            self.largest_logit = max(self.largest_logit, float(np.abs(first.logits - second.logits).max()))
            distances = np.abs(first.probabilities - second.probabilities).max(axis=1)
            self.largest_probability = max(self.largest_probability, float(distances.max()))
        else:
            distances = np.maximum(*confidences)
        for item, row in zip(answered.items, answered.rows, strict=True):
            if row < 0 or labels[0][row] == labels[1][row]:
                continue
            self.different_count += 1
            both = zip(labels, confidences, strict=True)
            line = f"{shown_name(item)}: " + ", ".join(
                f"{each[row]} {share[row]:.1%}" for each, share in both
            )
            heapq.heappush(self.shown, (float(distances[row]), -self.different_count, line))
            if len(self.shown) > self.most_shown:
                heapq.heappop(self.shown)


def _print_answers(config: DiffConfig, models: list[LocalModel]) -> None:
    assert config.images is not None
    source = open_source(config.images, config.path_column)
    answers = _Answers(config.most_shown)
    with Terminal(Console(stderr=True)).counting_on("comparing") as advance:
        for answered in answer_all(models, source.items):
            answers.add(answered)
            advance(len(answered.items))
    print_left_out(source)
    same = answers.image_count - answers.different_count
    share = f" ({same / answers.image_count:.2%})" if answers.image_count else ""
    broken = f"; {answers.broken_count:,} could not be read" if answers.broken_count else ""
    print(f"answers: the same label for {same:,} of {answers.image_count:,} images{share}{broken}")
    if models[0].labels == models[1].labels:
        print(
            f"largest difference: {answers.largest_logit:.3g} in a logit, "
            f"{answers.largest_probability:.3g} in a probability"
        )
    for _, _, line in sorted(answers.shown, reverse=True):
        print(escape_controls(f"  {line}"))


def _print_rows(rows: list[tuple[str, str, str]]) -> None:
    cells = [[escape_controls(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(2)]
    for row in cells:
        print(f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}".rstrip())


def _accuracy(manifest: Mapping[str, Any]) -> str:
    accuracy, facts = accuracy_of(manifest), entry(manifest, "accuracy")
    if accuracy is None:
        return "not measured"
    return f"{accuracy:.2%} of {_text(facts.get('image_count'))} {_text(facts.get('images'))}"


def _text(value: object) -> str:
    return "-" if value is None else str(value)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _size(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"
