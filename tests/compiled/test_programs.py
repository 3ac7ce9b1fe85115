"""What the compilers of TPU v5e and H100 make of the recurrence; `make compiled` runs it where both are."""

import json

import jax
import pytest
from typer.testing import CliRunner

from experiments.compiled.__main__ import app
from experiments.compiled.programs import Case, compile_case

pytestmark = pytest.mark.optimised

# Batches, both widths, dtypes and scopes, every position mode.
STEPS = [
    *(Case("v5e", "step", batch=batch) for batch in (0, 1, 8, 16)),
    Case("v5e", "step", dtype="float32", batch=8),
    Case("v5e", "step", policy="tova:scope=head", positions="cache", batch=8),
    Case("v5e", "step", policy="h2o", positions="gap", batch=8),
    Case("v5e", "step", "llama-3-8b", policy="h2o", batch=8),
    Case("v5e", "step", "llama-3-8b", policy="tova:scope=head", positions="gap", batch=8),
    Case("v5e", "step", "llama-3-8b", positions="cache", batch=16),
    Case("v5e", "step", "llama-3-8b", "float32", policy="tova:scope=head", positions="cache", batch=16),
    Case("h100", "step"),
    Case("h100", "step", "llama-3-8b", policy="h2o", batch=8),
]
EXTENSIONS = [
    *(Case("v5e", "extend", batch=batch) for batch in (0, 8)),
    Case("v5e", "extend", policy="window:sinks=4", batch=1),
    Case("v5e", "extend", "llama-3-8b", policy="tova:scope=head"),
    Case("v5e", "extend", "llama-3-8b", positions="cache"),
    Case("v5e", "extend", "llama-3-8b", positions="gap", batch=8),
    Case("h100", "extend"),
    Case("h100", "extend", "llama-3-8b", policy="h2o", batch=8),
    Case("h100", "extend", policy="tova:scope=head", batch=8),
]


@pytest.mark.parametrize("case", STEPS, ids=str)
def test_a_step_copies_no_weight_and_no_cache(case: Case) -> None:
    """It writes the state where it stands, and works in next to no memory besides."""
    made = compile_case(case)
    assert made.weights_copied() == [] and made.caches_copied() == []
    assert made.aliased >= made.state
    assert made.temporaries <= 0.02 * (made.weights + made.state)


@pytest.mark.parametrize("case", EXTENSIONS, ids=str)
def test_reading_many_tokens_copies_no_weight_and_no_cache(case: Case) -> None:
    """Where places do not depend on what is held, a kernel steps over a layer's chunk."""
    made = compile_case(case)
    assert made.weights_copied() == [] and made.caches_copied() == []
    assert made.aliased >= made.state
    if case.positions == "absolute" and case.policy != "window:sinks=4":  # which needs no steps
        assert case.target != "v5e" or made.program.text.count('custom_call_target="tpu_custom_call"') == case.layers
        assert case.target != "h100" or made.program.kernels() <= 0.5 * case.tokens * case.layers


def test_float32_weights_are_not_rounded_beside_the_model() -> None:
    """With the precision that is asked for where digits matter; else XLA for TPU keeps rounded ones."""
    with jax.default_matmul_precision("highest"):
        made = compile_case(Case("v5e", "extend", dtype="float32"))
    assert made.weights_copied() == [] and made.caches_copied() == []
    assert made.temporaries <= 0.02 * (made.weights + made.state)


def test_the_command_prints_a_table_and_writes_json(tmp_path) -> None:
    out = tmp_path / "compiled.json"
    options = ["--target", "h100", "--program", "step", "--batch", "0", "--out", str(out)]
    printed = CliRunner().invoke(app, options)
    assert printed.exit_code == 0, printed.output
    (row,) = json.loads(out.read_text())["rows"]
    assert row["weights_copied"] == [] and row["weight_bytes"] == 2 * (2 * 32000 + 4 * 4096 + 3 * 11008 + 3) * 4096
    assert 12 <= row["kernels_of_a_layer"] == row["kernels_of_a_token_and_layer"] <= 26
    assert f"{row['kernels_of_a_layer']:.1f}" in printed.output
    refused = CliRunner().invoke(app, ["--target", "abacus", "--out", str(out)])
    assert refused.exit_code == 2 and "target is 'abacus'; it must be one of v5e, h100" in refused.output
