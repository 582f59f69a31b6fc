"""`foldserve runs list` and `runs compare`, over real runs and whatever else lies in their folder."""

from __future__ import annotations

import fcntl
import json
import shutil
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from foldserve import cli
from foldserve.imaging import ImageSpec
from foldserve.training.checkpoint import load_checkpoint
from foldserve.training.config import TrainConfig
from foldserve.training.datasets import Dataset, registry
from foldserve.training.run.train import train
from tests.training.conftest import LineTerminal, make_examples

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the run `a` to its end, and interrupt `b` after its second epoch."""
    folder = tmp_path_factory.mktemp("trained")
    (images, labels), (test_images, test_labels) = make_examples(100, seed=1), make_examples(40, seed=2)
    dataset = Dataset(
        name="tiny",
        labels=("north", "east", "south", "west"),
        image=ImageSpec(channel_order="L", height=28, width=28, resize_shorter_side=28),
        train_images=images,
        train_labels=labels,
        test_images=test_images,
        test_labels=test_labels,
    )
    settings = {"dataset": "tiny", "epochs": 3, "batch_size": 20, "lr": 0.02, "device": "cpu", "threads": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("foldserve.training.run.finishing.write_report", lambda *_, **__: None)
        patch.setitem(registry.DATASETS, "tiny", lambda _folder, _terminal: dataset)
        train(TrainConfig(**settings, run_dir=folder / "a"), LineTerminal())
        with pytest.raises(KeyboardInterrupt):
            train(TrainConfig(**settings | {"lr": 0.01}, run_dir=folder / "b"), LineTerminal("epoch 3/3"))
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "runs")


def listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Return the line of each run, by its folder's name."""
    assert cli.main(["runs", "list", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["RUN", "NETWORK"]
    return {line.split()[0].rpartition("/")[2]: line for line in lines[1:]}


def test_a_list_tells_the_state_and_figures_of_each_run(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "notes").mkdir()
    (runs / "notes.txt").write_text("no run")
    lines = listed(runs, capsys)
    assert lines.keys() == {"a", "b"}
    metrics = load_checkpoint(runs / "a").metrics
    shares = [metrics[f"{name}"] for name in ("validation_accuracy", "test_accuracy", "test_macro_f1")]
    assert lines["a"].split()[6:9] == [f"{share:.2%}" for share in shares]
    assert "3 of 3" in lines["a"]
    assert lines["a"].endswith("finished")
    assert "2 of 3" in lines["b"]
    assert lines["b"].endswith("interrupted")
    records = [json.loads(line) for line in (runs / "b" / "metrics.jsonl").read_text().splitlines()]
    best = max(record["validation_accuracy"] for record in records)
    assert lines["b"].split()[6] == f"{best:.2%}"


def test_a_run_that_trains_is_told_from_an_interrupted_one(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (runs / "b" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert listed(runs, capsys)["b"].endswith("training")
    assert listed(runs, capsys)["b"].endswith("interrupted")


def cut(file: Path, share: float = 0.5) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no settings": (lambda run: (run / "config.json").unlink(), "BROKEN: config.json is missing"),
    "settings cut short": (lambda run: cut(run / "config.json"), "BROKEN: config.json is not JSON"),
    "settings of another kind": (
        lambda run: (run / "config.json").write_text("[1]"),
        "BROKEN: config.json holds no settings",
    ),
    "settings nested": (lambda run: (run / "config.json").write_text("[" * 99_999), "BROKEN: config.json"),
    "metrics": (
        lambda run: (run / "metrics.jsonl").write_text('{"epoch": 1}\n'),
        "BROKEN: metrics.jsonl line 1 has no figures of an epoch",
    ),
    "metrics too large": (
        lambda run: (run / "metrics.jsonl").write_text(
            '{"epoch": 1, "train_loss": 1, "validation_loss": 1, "validation_accuracy": 1%s}\n' % ("0" * 400)
        ),
        "BROKEN: metrics.jsonl line 1 has no figures of an epoch",
    ),
    "metrics of bytes": (lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\xfe\n"), "BROKEN:"),
    "best cut short": (lambda run: cut(run / "best.pt"), "BROKEN: "),
    "best of another kind": (lambda run: (run / "best.pt").write_text("x"), "best.pt is not a checkpoint"),
    "a folder for a file": (
        lambda run: ((run / "metrics.jsonl").unlink(), (run / "metrics.jsonl").mkdir()),
        "BROKEN: ",
    ),
}


def test_odd_values_in_a_run_are_left_out_of_the_list(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = runs / "b" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"select": "macro-f1", "epochs": 10**400}))
    figures = {"train_loss": 1.0, "validation_loss": 1.0, "validation_accuracy": 0.5, "train_s": 10**400}
    odd = ({"validation_macro_f1": None}, {"validation_macro_f1": "high"}, {"validation_macro_f1": 10**400})
    (runs / "b" / "metrics.jsonl").write_text(
        "".join(json.dumps({"epoch": number, **figures, **each}) + "\n" for number, each in enumerate(odd, 1))
    )
    assert listed(runs, capsys)["b"].split()[6] == "50.00%"


def test_broken_runs_are_rows_with_the_reason(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, (spoil, _) in BREAKS.items():
        spoil(shutil.copytree(runs / "a", runs / name.replace(" ", "-")))
    lines = listed(runs, capsys)
    for name, (_, said) in BREAKS.items():
        assert said in lines[name.replace(" ", "-")], name
    assert lines["a"].endswith("finished"), "the others are still told"


def test_a_half_written_line_is_an_epoch_that_is_not_there_yet(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut(runs / "b" / "metrics.jsonl", 0.9)
    line = listed(runs, capsys)["b"]
    assert "1 of 3" in line
    assert line.endswith("interrupted")


def test_runs_are_compared_in_a_table_and_a_picture(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "compared.png"
    words = ["runs", "compare", str(runs / "a"), str(runs / "b"), "--out", str(picture)]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "lr: 0.02, 0.01\n" in printed
    assert "epochs:" not in printed, "what is the same is not told"
    with Image.open(picture) as image:
        colours = image.convert("RGB").getcolors(1 << 24)
    assert {(31, 119, 180), (255, 127, 14)} <= {colour for _, colour in colours or []}, "a curve for each run"
    before = picture.read_bytes()
    assert cli.main([*words[:3], "--out", str(picture)]) == 0
    assert picture.read_bytes() != before
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


def test_data_sets_in_folders_of_long_names_are_told_apart(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, tables in (("a", ("left.csv",)), ("b", ("right.csv", "more.csv"))):
        file = runs / run / "config.json"
        there = json.loads(file.read_text())
        there["dataset"] = ",".join(f"/{'folder' * 20}/{table}" for table in tables)
        file.write_text(json.dumps(there))
    lines = listed(runs, capsys)
    assert lines["a"].split()[2] == "left.csv"
    assert lines["b"].split()[2] == "right.csv,more.csv"
    cli.main(["runs", "compare", str(runs / "a"), str(runs / "b"), "--out", str(runs / "c.png")])
    assert f"dataset: /{'folder' * 20}/left.csv, " in capsys.readouterr().out


def test_a_broken_run_is_told_and_the_others_are_drawn(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["runs", "compare", str(runs / "a"), str(runs / "none"), "--out", str(tmp_path / "c.png")]
    assert cli.main(words) == 1
    printed = capsys.readouterr()
    assert "BROKEN: is no folder" in printed.out
    assert printed.err.count("\n") == 1
    assert (tmp_path / "c.png").exists()


@pytest.mark.parametrize(
    ("words", "said", "status"),
    [
        (("runs", "list", "{folder}/none"), "cannot be read: No such file or directory", 1),
        (("runs", "list", "{folder}"), "holds no runs", 1),
        (("runs", "compare", "{folder}/none"), "no curves to draw", 1),
        (("runs", "compare"), "the following arguments are required: RUNS", 2),
        (("runs", "compare", "a", "--out", "a.pdf"), "expected a file that ends in .png", 2),
    ],
)
def test_what_cannot_be_listed_or_compared_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str, status: int
) -> None:
    assert cli.main([word.format(folder=tmp_path) for word in words]) == status
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
