"""The experiment that measures what conversion takes, on a model many times larger than what it may take."""

import json

import pytest
from typer.testing import CliRunner

from experiments import conversion


@pytest.mark.exhaustive
def test_memory_is_bounded_by_the_largest_tensor(tmp_path):
    out = tmp_path / "result.json"
    arguments = ["--gib", "0.9", "--vocab-size", "8000", "--model-dim", "1024", "--folder", str(tmp_path)]
    done = CliRunner().invoke(conversion.app, [*arguments, "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert result["same_bits_there_and_back"] is True
    assert list(result["conversions"]) == ["in, bfloat16", "in, --dtype float32", "out"]
    for name, found in result["conversions"].items():
        assert 10**8 < found["peak_bytes"] < found["bound_bytes"] < result["weights_bytes"] / 1.5, name
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_what_cannot_be_made_is_refused(tmp_path):
    for arguments, message in [
        (["--model-dim", "300"], "--model-dim is 300; it must be a multiple of 256"),
        (["--gib", "1000", "--folder", str(tmp_path)], "are free on its disk"),
        (["--folder", str(tmp_path / "nowhere")], "nowhere"),
    ]:
        out = ["--out", str(tmp_path / "result.json")]
        done = CliRunner().invoke(conversion.app, [*arguments, *out], catch_exceptions=False)
        assert done.exit_code == 2 and message in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []
