"""The autoscaler's query, filled in as prometheus-adapter does, evaluated on series of our own."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.contract.test_prometheus import binary
from tests.deploy.manifests import KUBERNETES, load

if TYPE_CHECKING:
    from pathlib import Path


def query(*, pods: str) -> str:
    (rule,) = load(KUBERNETES / "prometheus-adapter-values.yaml")["rules"]["custom"]
    text: str = rule["metricsQuery"]
    for placeholder, filling in (
        ("<<.Series>>", rule["seriesQuery"].partition("{")[0]),
        ("<<.LabelMatchers>>", f'namespace="prod",pod=~"{pods}"'),
        ("<<.GroupBy>>", "pod"),
    ):
        assert placeholder in text
        text = text.replace(placeholder, filling)
    return text


@pytest.mark.prometheus
def test_each_pod_has_the_minute_s_mean_of_all_its_queues(tmp_path: Path) -> None:
    def series(pod: str, version: int, values: str, namespace: str = "prod") -> dict[str, str]:
        labels = f'namespace="{namespace}",pod="{pod}",model="lenet",version="{version}"'
        return {"series": f"foldserve_pending_rows{{{labels}}}", "values": values}

    (tmp_path / "rules.yaml").write_text("groups: []\n")
    test = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [
                    # Scraped every 15 s; a queue that is full at every other scrape only.
                    series("a", 1, "0 100 0 100 0 100 0 100 0"),
                    series("a", 2, "8x8"),
                    series("b", 1, "0x8"),
                    series("other", 1, "900x8"),
                    series("a", 1, "900x8", namespace="test"),
                ],
                "promql_expr_test": [
                    {
                        "expr": query(pods="a|b"),
                        "eval_time": "110s",
                        "exp_samples": [
                            {"labels": '{pod="a"}', "value": 58},
                            {"labels": '{pod="b"}', "value": 0},
                        ],
                    }
                ],
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    command = [binary("promtool"), "test", "rules", str(tmp_path / "test.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
