"""The speed table's forms: they are what their names say, and all the same network."""

import numpy as np
import onnx
import onnxruntime
import pytest

from benchmarks.export_figures import BOUNDS, SUBJECTS, Forms, Row, measure, print_verdict


@pytest.fixture(scope="module")
def forms():
    return Forms(SUBJECTS[0], is_compiled=False)


def test_unfolded_has_batch_norm_in_the_file_and_folded_has_none(forms):
    operations = {
        name: [node.op_type for node in onnx.load_from_string(content).graph.node]
        for name, content in forms.files.items()
    }
    assert operations["unfolded"].count("BatchNormalization") == 3
    assert operations["tidied"].count("BatchNormalization") == 3
    assert "Mul" in operations["unfolded"]
    assert not {"BatchNormalization", "Mul"} & set(operations["folded"])
    assert "QuantizeLinear" in operations["int8"]


def test_onnx_runtime_fuses_batch_norm_in_the_tidied_file_only(forms, tmp_path):
    """What the table's two unfolded columns are about; here so that a new ONNX Runtime tells us."""

    def batch_norms_at_run_time(name):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{name}.onnx")
        options.log_severity_level = 3  # it warns that such a file suits one machine
        onnxruntime.InferenceSession(forms.files[name], options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(options.optimized_model_filepath).graph.node
        return [node.op_type for node in nodes].count("BatchNormalization")

    assert batch_norms_at_run_time("unfolded") == 3
    assert batch_norms_at_run_time("tidied") == 0


def test_every_form_answers_alike(forms):
    answers = {name: np.asarray(run()).reshape(-1, 10) for name, run in forms.programs(1, 8).items()}
    expected = answers.pop("eager")
    for name in ("unfolded", "tidied", "folded"):
        assert np.abs(answers[name] - expected).max() < 1e-4
    assert 0 < np.abs(answers["int8"] - expected).max() < 0.2 * np.abs(expected).max()


def test_a_row_has_a_time_for_each_form_and_the_bounds_judge_ratios(forms, capsys):
    row = measure(forms, threads=1, batch_size=2, total_s=0.01)
    assert set(row.ms) == {"eager", "unfolded", "tidied", "folded", "int8"}
    assert all(value > 0 for value in row.ms.values())
    print_verdict(BOUNDS[0], [Row("lenet", 1, 1, {"folded": 1.0, "unfolded": 1.49})])
    print_verdict(BOUNDS[0], [Row("lenet", 1, 1, {"folded": 1.0, "unfolded": 1.51})])
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("MISSED")
    assert second.endswith("met")
