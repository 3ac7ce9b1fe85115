"""The page about a policy of one's own: its blocks run, and its policy is what it says."""

import inspect
import shlex
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pages
import pytest
import tiny
from toy import make_toy
from typer.testing import CliRunner

import msrnn_jax as ms
from msrnn_jax.cli.app import app

NAME = "docs/own_policy.md"
DOCS = pages.ROOT / "docs"
FILE = DOCS / "decayed_attention.py"

T, BUDGET = 26, 6
FLOAT64 = tiny.CONFIG.replace(dtype="float64")
DecayedAttention = type(ms.parse_policy(f"{FILE}:DecayedAttention"))


class Misplaced(DecayedAttention):
    """The decay weighs what comes, not what was."""

    def observe(self, stats, view):
        received = view.probs.mean(axis=1)
        if self.scope == "layer":
            received = received.mean(axis=0)[None]
        return stats + self.decay * received


class Early(DecayedAttention):
    """Scores by what was known before the newest query."""

    def init(self, rows, slots):
        return jnp.zeros((rows, slots, 2))

    def observe(self, stats, view):
        before = stats[..., 0]
        return jnp.stack([super().observe(before, view), before], axis=-1)

    def score(self, layer, t):
        return layer.stats[..., 1]


@jax.jit
def by_step(policy, params, tokens):
    """Positions held after every token; [T, #K, S] for every layer."""
    return tiny.unroll(FLOAT64, policy, params, ms.init_state(FLOAT64, policy, BUDGET), tokens)[1][1]


@jax.jit
def by_extend(policy, params, tokens):
    """The same, each from chunks of 7 that end there."""
    state = ms.init_state(FLOAT64, policy, BUDGET)

    def prefix(length):
        last, _ = ms.extend(FLOAT64, policy, params, state, tokens, length=length, chunk=7)
        return [layer.positions for layer in last.layers]

    return jax.vmap(prefix)(jnp.arange(1, T + 1, dtype=jnp.int32))


def sets(layers, t):
    return [[sorted(int(p) for p in row if p != ms.EMPTY) for row in np.asarray(layer[t])] for layer in layers]


@cache
def defined(options, decay):
    """What is held after every token: a sum over all that a token ever received."""

    def rule(memory):
        ages = range(len(memory.received) - 1, -1, -1)
        return sum(decay**age * attention for age, attention in zip(ages, memory.received, strict=True))

    params, tokens = tiny.params("float64"), tiny.tokens(T).tolist()
    return [moment.kept for moment in oracle.run(FLOAT64, f"own:{options}", params, tokens, BUDGET, rule=rule)]


@pytest.mark.parametrize("options", ["scope=head,sinks=1,recent=2", tiny.more("scope=layer")])
def test_the_policy_of_the_page_is_its_definition_and_slips_are_not(options, x64):
    expected, decay = defined(options, 0.5), 0.5
    settings = ms.parse_policy(f"tova:{options}")
    shared = {"scope": settings.scope, "sinks": settings.sinks, "recent": settings.recent}
    params, tokens = tiny.params("float64"), jnp.asarray(tiny.tokens(T))
    for held in (by_step, by_extend):
        positions = held(DecayedAttention(decay=decay, **shared), params, tokens)
        for t in range(T):
            assert sets(positions, t) == expected[t], f"{held.__name__}: kept sets differ after token {t}"
    for wrong in (Misplaced, Early) if settings.scope == "layer" else ():
        ms.check_contract(wrong(decay=decay, **shared), FLOAT64)  # they can be run, and are another policy
        positions = by_step(wrong(decay=decay, **shared), params, tokens)
        assert any(sets(positions, t) != expected[t] for t in range(T))


def test_the_oracle_takes_a_rule_with_a_policy_of_ones_own_only():
    for policy, rule in (("own", None), ("tova", lambda memory: memory.latest)):
        with pytest.raises(ValueError, match="a rule goes with the policy 'own' only"):
            oracle.run(FLOAT64, policy, tiny.params("float64"), [1], 4, rule=rule)


def test_its_decay_is_checked():
    with pytest.raises(ValueError, match="DecayedAttention: decay is 2.0; it must be from 0 to 1"):
        ms.parse_policy(f"{FILE}:DecayedAttention:decay=2")


@pytest.mark.exhaustive
def test_python_blocks_run_and_print_what_the_page_says(tmp_path):
    pages.run_python(NAME, tmp_path)
    for name in ("init", "observe", "score"):  # the class of the page is that of the file
        body = inspect.getsource(getattr(DecayedAttention, name))
        assert body in pages.PAGES[NAME]


@pytest.mark.exhaustive
def test_commands_run(tmp_path, monkeypatch):
    """Each line of the shell block, in a folder where its paths exist, on a small model."""
    make_toy(tmp_path / "checkpoints" / "smollm2-135m")
    (tmp_path / "docs").symlink_to(DOCS)
    monkeypatch.chdir(tmp_path)
    (block,) = pages.blocks(NAME, "sh")
    outputs = []
    for line in block.text.strip().splitlines():
        command, *arguments = shlex.split(line)
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert command == "msrnn" and result.exit_code == 0, result.output
        outputs.append(result.stdout)
    assert outputs[0].startswith("The sea is") and len(outputs[0]) > len("The sea is\n")
    assert "1022 tokens predicted, segments: 2" in outputs[1]
