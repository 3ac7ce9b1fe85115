"""The experiment that measures how long a user waits."""

import json
import os

import pytest
from toy import make_toy
from typer.testing import CliRunner

from experiments import first_token

pytestmark = pytest.mark.exhaustive


def test_waits_are_measured_and_written(tmp_path, monkeypatch):
    toy, out = make_toy(tmp_path / "toy"), tmp_path / "result.json"
    arguments = [toy, "--prompt", "hello", "--turns", "1", "--budget", "8"]
    done = CliRunner().invoke(first_token.app, [*arguments, "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert all(
        seconds > 0 for (seconds,) in (*result["import_seconds"].values(), *result["first_token_seconds"].values())
    )
    assert list(result["first_token_seconds"]) == ["cold", "warm"] and result["settings"]["budget"] == 8
    assert "first token, warm" in done.stdout
    failed = CliRunner().invoke(first_token.app, ["nowhere", "--turns", "1", "--out", str(out)], catch_exceptions=False)
    assert failed.exit_code == 2 and "error: checkpoint 'nowhere' does not exist" in failed.stderr


def test_the_first_run_fills_the_cache_that_the_second_reads(tmp_path):
    settings = first_token.Settings(make_toy(tmp_path / "toy"), "hello", "tova", 8, 1)
    first_token.first_token_seconds(settings, str(tmp_path / "cache"))
    kept = sorted(name for name in os.listdir(tmp_path / "cache" / "xla") if name.endswith("-cache"))
    assert any("read_prompts" in name for name in kept) and any("decode" in name for name in kept)
    first_token.first_token_seconds(settings, str(tmp_path / "cache"))
    assert sorted(name for name in os.listdir(tmp_path / "cache" / "xla") if name.endswith("-cache")) == kept
