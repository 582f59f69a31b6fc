"""Makes the page of a report: figures, pictures and settings in one HTML file, which can be mailed."""

from __future__ import annotations

import base64
import html
from typing import TYPE_CHECKING, Any

from foldserve.terminal import duration_text
from foldserve.text import escape_controls
from foldserve.training.run.messages import chosen_as

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from foldserve.training.checkpoint import Checkpoint
    from foldserve.training.config import TrainConfig
    from foldserve.training.run.mistakes import Mistake


def make_page(
    best: Checkpoint,
    *,
    name: str,
    history: Sequence[dict[str, Any]],
    config: TrainConfig,
    pictures: Mapping[str, Path],
    mistakes: Sequence[Mistake],
) -> str:
    """Return the page of a run on the data set ``name``, with the PNG files ``pictures`` by their captions.

    Raises:
        OSError: a picture cannot be read.
    """
    metrics = best.metrics
    selected = f"validation_{config.select.replace('-', '_')}"
    parameters = sum(parameter.numel() for parameter in best.build().parameters())
    facts = {
        "test accuracy": f"{metrics['test_accuracy']:.2%}",
        **({"test macro-F1": f"{metrics['test_macro_f1']:.2%}"} if "test_macro_f1" in metrics else {}),
        "test loss": f"{metrics['test_loss']:.4f}",
        f"validation {config.select}": (
            f"{metrics[selected]:.2%} in epoch {metrics['epoch']}, {chosen_as(config)}"
        ),
        "weights": f"{best.weights_kind}, {parameters:,} parameters",
        "training time": duration_text(sum(record["train_s"] for record in history)),
    }
    settings = {key.replace("_", "-"): value for key, value in config.model_dump(mode="json").items()}
    return _TEMPLATE.format(
        heading=_escaped(f"{best.arch} on {name}"),
        facts=_rows(facts.items()),
        pictures="\n".join(_picture(caption, file) for caption, file in pictures.items()),
        mistakes=_rows(
            (each.name, f"{each.label} taken for {each.prediction}, {each.probability:.1%}")
            for each in mistakes
        ),
        settings=_rows(settings.items()),
    )


def _picture(caption: str, file: Path) -> str:
    content = base64.b64encode(file.read_bytes()).decode()
    return f'<h2>{caption}</h2>\n<img src="data:image/png;base64,{content}" alt="{caption}">'


def _rows(entries: Iterable[tuple[str, Any]]) -> str:
    return "\n".join(
        f"<tr><th>{_escaped(name)}</th><td>{_escaped(str(value))}</td></tr>" for name, value in entries
    )


def _escaped(text: str) -> str:
    return html.escape(escape_controls(text))


_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{heading}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
img {{ max-width: 100%; height: auto; }}
th {{ text-align: left; font-weight: normal; color: #555; padding-right: 1.5rem; }}
th, td {{ overflow-wrap: anywhere; vertical-align: top; }}
td {{ font-variant-numeric: tabular-nums; }}
</style>
</head>
<body>
<h1>{heading}</h1>
<table>
{facts}
</table>
{pictures}
<table>
{mistakes}
</table>
<h2>Settings</h2>
<table>
{settings}
</table>
</body>
</html>
"""
