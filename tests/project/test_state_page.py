"""docs/state.md runs, and its algorithms find what simpler ones do."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pages
import pytest
import tiny
from toy import make_toy

import msrnn_jax as ms

NAME = "docs/state.md"


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> dict:
    """What is left when every block of the page has run, on a small model."""
    folder = tmp_path_factory.mktemp("page")
    make_toy(folder / "checkpoints" / "smollm2-135m")
    return pages.run_python(NAME, folder)


def greedy(names: dict, count: int) -> list[int]:
    """What the state writes step by step."""
    state, logits, written = names["state"], names["logits"], []
    for _ in range(count):
        written.append(int(jnp.argmax(logits)))
        state, logits = names["step"](names["config"], names["policy"], names["params"], state, jnp.int32(written[-1]))
    return written


def log_probability(names: dict, tokens) -> float:
    """Of tokens that follow the state, by one reading."""
    tokens = jnp.asarray(tokens, jnp.int32)
    args = names["config"], names["policy"], names["params"], names["state"]
    _, nats = ms.nll(*args, tokens[:-1], tokens[1:])
    return float(jax.nn.log_softmax(names["logits"])[tokens[0]] - nats.sum())


@pytest.mark.exhaustive
def test_what_is_kept_stays_as_it_was(names: dict) -> None:
    assert int(names["after"].t) == int(names["state"].t) + 1 == len(names["prompt"]) + 1
    assert names["notes"] == {"question": "Write one sentence about the sea."}
    for leaf, row in zip(jax.tree.leaves(names["state"]), jax.tree.leaves(names["forks"]), strict=True):
        np.testing.assert_array_equal(row, np.stack([leaf] * 4))


@pytest.mark.exhaustive
def test_the_best_of_n_is_the_likeliest_of_them(names: dict) -> None:
    scores = [log_probability(names, tokens) for tokens in names["drawn"]]
    np.testing.assert_allclose(names["scores"], scores, atol=2e-3)
    assert int(names["best"]) == int(np.argmax(scores)) and len({tuple(row.tolist()) for row in names["drawn"]}) > 1
    assert int(names["state_of_best"].t) == len(names["prompt"]) + 12


@pytest.mark.exhaustive
def test_what_a_beam_says_of_its_tokens_is_their_log_probability(names: dict) -> None:
    np.testing.assert_allclose(names["score"], log_probability(names, names["found"]), atol=2e-3)


@pytest.mark.exhaustive
def test_what_is_verified_is_what_the_state_writes_by_itself(names: dict) -> None:
    assert names["text"][:24] == greedy(names, 24)
    assert int(names["now"].t) == len(names["prompt"]) + len(names["text"])


@pytest.mark.exhaustive
def test_beams_are_those_of_a_search_that_reads_everything_anew() -> None:
    """Of a small vocabulary: every beam with every next token, from the beginning, and the best of these live on."""
    left: dict = {"jax": jax, "jnp": jnp, "ms": ms, "policy": ms.TOVA()}
    config = left["config"] = tiny.CONFIG.replace(vocab_size=6)
    params = tiny.params(config=config)
    (source,) = re.findall(r"^(def beam_search.*?)\n\n\n", pages.PAGES[NAME], re.M | re.S)
    exec(source, left)
    empty = ms.init_state(config, ms.TOVA(), 3)
    state, logits = ms.prefill(config, ms.TOVA(), params, empty, jnp.asarray([1, 4, 2, 5]))

    @jax.jit
    def logs_of(row):
        """Log-probabilities [4] of tokens [4], each after those before it."""
        _, after = ms.extend(config, ms.TOVA(), params, state, row[:-1])
        return jnp.take_along_axis(jax.nn.log_softmax(jnp.vstack([logits[None], after])), row[:, None], axis=1)[:, 0]

    for width in (1, 3):
        beams = [((), 0.0)]
        for count in range(4):
            longer = [(*tokens, token) for tokens, _ in beams for token in range(6)]
            rows = jnp.asarray([[*tokens, *[0] * (3 - count)] for tokens in longer], jnp.int32)
            totals = [float(logs_of(row)[: count + 1].sum()) for row in rows]
            beams = sorted(zip(longer, totals, strict=True), key=lambda beam: -beam[1])[:width]
        written, found = jax.jit(left["beam_search"], static_argnums=(3, 4))(params, state, logits, width, 4)
        assert tuple(written.tolist()) == beams[0][0]
        np.testing.assert_allclose(found, beams[0][1], atol=1e-4)


@pytest.mark.exhaustive
def test_the_gradient_says_how_the_loss_changes(names: dict) -> None:
    values, slope = names["layer"].values, names["slope"]
    size = 1e-2 / float(jnp.linalg.norm(slope))
    ends = [
        names["loss"](values + sign * size * slope, names["params"], names["state"], names["logits"])
        for sign in (1, -1)
    ]
    expected = float(jnp.vdot(slope, slope)) * 2 * size
    assert float(ends[0] - ends[1]) == pytest.approx(expected, rel=0.05)
    held = np.asarray(names["layer"].positions[0]) != ms.EMPTY
    assert not np.asarray(slope)[:, ~held].any() and np.asarray(names["weight"])[held].max() > 0


def test_a_fork_needs_a_number_of_states() -> None:
    with pytest.raises(ValueError, match="count is 0; it must be a whole number of at least 1"):
        ms.fork(ms.init_state(tiny.CONFIG, ms.TOVA(), 4), 0)
