"""`make bench-networks`: rows are kept, a second start does what is missing, tables count what is there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.networks.kept import kept, kept_by_kind
from benchmarks.networks.results import append_result, read_results, still_to_do
from benchmarks.networks.table import all_networks, bounds, failures, kinds, summary

if TYPE_CHECKING:
    from pathlib import Path

A, B, C = ("timm/a", "calibrated"), ("timm/b", "calibrated"), ("torchvision/c", "random")


def row(network: str, statistics: str = "calibrated", outcome: str = "right", **more: Any) -> dict[str, Any]:
    facts = {"network": network, "statistics": statistics, "outcome": outcome, "commit": "new"}
    return facts | {"package": network.partition("/")[0], "side": 64} | more


def test_rows_come_back_and_later_ones_replace_earlier(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    for each in (row(*A, outcome="refused"), row(*C), row(*A)):
        append_result(path, each)
    rows = read_results(path)
    assert [rows[A]["outcome"], rows[C]["outcome"]] == ["right", "right"]
    assert len(path.read_text().splitlines()) == 3


def test_a_run_that_was_cut_short_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_result(path, row(*A))
    with path.open("a") as file:
        file.write(json.dumps(row(*B))[:20])
    assert list(read_results(path)) == [A]
    assert still_to_do([A, B], read_results(path)) == [B]
    append_result(path, row(*B))
    assert list(read_results(path)) == [A, B]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"network": 1}\n')
    with pytest.raises(ValueError, match="line 1"):
        read_results(path)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        pytest.param({}, [C], id="what is missing"),
        pytest.param({"again": ["timm/a*"]}, [A, C], id="by name"),
        pytest.param({"failed": True}, [B, C], id="failed"),
        pytest.param({"other_commit": "new"}, [A, C], id="of another commit"),
    ],
)
def test_rows_are_run_again_if_asked(asked: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    done = {A: row(*A) | {"commit": "old"}, B: row(*B, outcome="stopped")}
    assert still_to_do([A, B, C], done, **asked) == expected


ROWS = [
    row("timm/a", folded=9, folds=10, input_scaling="folded", cpu_seconds=4.0, peak_mib=900, error=2e-6)
    | {"pytorch_error": 1e-6, "pytorch": {"outcome": "right"}},
    row("timm/b", outcome="refused", reason="b.0 normalises by its batch", cpu_seconds=1.0, peak_mib=300)
    | {"pytorch": {"outcome": "wrong"}},
    row("timm/c", outcome="refused", reason="c.1 normalises by its batch", pytorch={"outcome": "failed"}),
    row("torchvision/d", "random", folded=5, folds=5, cpu_seconds=9.0, peak_mib=2600, parameters=9),
    row("torchvision/e", "random", outcome="stopped", reason="timed out after 300 s", peak_mib=7000),
]


def test_summary_counts_each_package_and_kind_of_statistics() -> None:
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in summary(ROWS).splitlines()[2:4]
    ]
    most = ["9, at most 9", "4,800, at most 7,000"]
    assert cells[0] == ["torchvision", "random", "2", "1 (50.0%)", "0", "1", "0", "", "5 of 5", *most]
    most = ["2, at most 4", "600, at most 900"]
    assert cells[1] == ["timm", "calibrated", "3", "1 (33.3%)", "2", "0", "0", "1 of 3", "9 of 10", *most]


def test_bounds_say_what_was_missed() -> None:
    assert bounds(ROWS) == [
        "- torchvision, random: 50.0% published and right, at least 98%: MISSED",
        "- timm, calibrated: 33.3% published and right, at least 96%: MISSED",
        "- 0 published and wrong, 0 allowed: met",
        "- of 3 compared, right: 1 by foldserve and 1 by PyTorch's exporter; more wanted: MISSED",
        "- 14 of 15 batch norms folded (93.3%), at least 97%: MISSED",
        "- memory at most 2,600 MiB below 150 million weights, at most 2,500: MISSED",
    ]
    met = [row("timm/a", folded=10, folds=10, cpu_seconds=1.0, peak_mib=900, pytorch={"outcome": "wrong"})]
    assert all(line.endswith(": met") for line in bounds(met))
    flat = [row("timm/a", varying=0.5), row("timm/b", varying=1e-4), row("timm/c")]
    assert "- logits that hardly depend on the image: timm/b; none wanted: MISSED" in bounds(flat)
    assert "- 1 published and wrong, 0 allowed: MISSED" in bounds([row("timm/a", outcome="wrong")])


def test_failures_are_listed_and_grouped_by_reason() -> None:
    assert [line.split(" | ")[:3] for line in failures(ROWS).splitlines()[2:]] == [
        ["| timm/b", "calibrated", "refused"],
        ["| timm/c", "calibrated", "refused"],
        ["| torchvision/e", "random", "stopped"],
    ]
    grouped = kinds(ROWS).splitlines()
    assert grouped[0].startswith("- 2: refused: ")
    assert grouped[1] == "  timm/b (calibrated), timm/c (calibrated)"


def test_every_network_has_a_line() -> None:
    lines = all_networks(ROWS).splitlines()
    assert len(lines) == 2 + len(ROWS)
    assert "| timm/a | 64 | calibrated | right | 2.00 | 9/10 | 4.0 | 900 | right |" in lines[2]


def test_batch_norms_that_were_not_folded_are_counted_by_kind() -> None:
    folding = [
        {"name": "a", "action": "folded", "reason": "into conv"},
        *(
            {
                "name": name,
                "action": "rewritten",
                "reason": f"Concat (cat_{name}) before it is neither convolution nor linear; "
                f"blocks.{name}.conv behind it is zero-padded",
            }
            for name in ("1", "2")
        ),
        {"name": "b", "action": "rewritten", "reason": "its output goes to 3 places: fc behind it is odd"},
    ]
    concatenated = "Concat before it is neither convolution nor linear; layer behind it is zero-padded"
    branching = "its output goes to N places: layer behind it is odd"
    assert kept_by_kind(folding) == {concatenated: 2, branching: 1}
    rows = [row("timm/a", kept={concatenated: 2, branching: 1}), row("timm/b", kept={concatenated: 3})]
    assert kept(rows).splitlines() == [
        f"- 5: {concatenated}",
        "  timm/a (2), timm/b (3)",
        f"- 1: {branching}",
        "  timm/a (1)",
    ]
