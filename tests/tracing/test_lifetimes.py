"""When tokens were freed, against the oracle's lists of what is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny

import msrnn_jax as ms
from msrnn_jax.params import abstract_params
from msrnn_jax.state import POSITION_MODES
from msrnn_jax.tracing.lifetimes import FREED_BEFORE, STILL_HELD, follow, follow_oneshot, start_record

CONFIG = tiny.CONFIG.replace(dtype="float64")
COUNT, BUDGET = 26, 6

jitted = jax.jit(follow)


def as_lists(freed: jax.Array) -> list[list[list[int | None]]]:
    """A record as the oracle writes it."""
    return [[[None if t == STILL_HELD else t for t in row] for row in layer] for layer in freed.tolist()]


CASES = [(policy, POSITION_MODES[number % 3]) for number, policy in enumerate(tiny.POLICIES)]
CASES += [(ms.TOVA(), "absolute"), (ms.TOVA(), "gap")]


@pytest.mark.parametrize(
    ("policy", "positions"),
    tiny.few(CASES, *(case for case in CASES if case[0] in tiny.TYPICAL)),
    ids=str,
)
def test_what_is_freed_when_equals_the_oracle(policy, positions, x64):
    params, tokens = tiny.params("float64"), tiny.tokens(COUNT)
    budget = tiny.budget_for(policy, COUNT, BUDGET)
    moments = oracle.run(CONFIG, str(policy), params, tokens, budget, positions=positions)
    state = ms.init_state(CONFIG, policy, budget, positions=positions)
    last, freed = jitted(CONFIG, policy, params, state, start_record(state, COUNT), jnp.asarray(tokens))
    assert as_lists(freed) == oracle.freed(moments)
    assert freed.dtype == jnp.int32 and int(last.t) == COUNT
    assert bool((freed < STILL_HELD).any()) == policy.forgets


def test_an_oneshot_prompt_is_freed_at_its_end(x64):
    policy, params, tokens, prompt = ms.TOVA(), tiny.params("float64"), tiny.tokens(COUNT), 20
    moments = oracle.run(CONFIG, str(policy), params, tokens, BUDGET, oneshot=prompt)
    state = ms.init_state(CONFIG, policy, BUDGET)
    freed = start_record(state, COUNT)
    state, freed = follow_oneshot(CONFIG, policy, params, state, freed, jnp.asarray(tokens[:prompt]))
    assert set(np.unique(freed)) <= {prompt - 1, STILL_HELD}
    _, freed = jitted(CONFIG, policy, params, state, freed, jnp.asarray(tokens[prompt:]))
    assert as_lists(freed) == oracle.freed(moments)


def test_blocks_with_padding_and_budgets_of_their_own_equal_one_scan(x64):
    policy, params, tokens = ms.TOVA(scope="head"), tiny.params("float64"), tiny.tokens(COUNT)
    state = ms.init_state(CONFIG, policy, [3, 7])
    whole, expected = jitted(CONFIG, policy, params, state, start_record(state, COUNT), jnp.asarray(tokens))
    assert [(row == STILL_HELD).sum() for layer in np.asarray(expected) for row in layer] == [3] * 3 + [7] * 3
    freed = start_record(state, COUNT)
    for start in range(0, COUNT, 10):
        block = np.full(10, 13, np.int32)
        block[: len(tokens[start : start + 10])] = tokens[start : start + 10]
        length = jnp.int32(min(10, COUNT - start))
        state, freed = jitted(CONFIG, policy, params, state, freed, jnp.asarray(block), length)
    np.testing.assert_array_equal(freed, expected)
    assert int(state.t) == COUNT
    assert [tiny.held(layer) for layer in state.layers] == [tiny.held(layer) for layer in whole.layers]


def test_a_record_begun_in_mid_text_knows_what_had_gone(x64):
    tokens, rest = tiny.tokens(COUNT), np.zeros(COUNT, np.int32)
    rest[: COUNT - 16] = tokens[16:]
    state = ms.init_state(CONFIG, ms.TOVA(), 5)

    def read(state: ms.MultiState, tokens: np.ndarray, length: int) -> tuple[ms.MultiState, jax.Array]:
        freed, params = start_record(state, COUNT), tiny.params("float64")
        return jitted(CONFIG, ms.TOVA(), params, state, freed, jnp.asarray(tokens), jnp.int32(length))

    _, whole = read(state, tokens, COUNT)
    middle, _ = read(state, tokens, 16)
    _, late = read(middle, rest, COUNT - 16)
    whole, late = np.asarray(whole), np.asarray(late)
    np.testing.assert_array_equal(late, np.where(whole < 16, FREED_BEFORE, whole))
    assert (late == FREED_BEFORE).sum() == 2 * (16 - 5)


def test_nothing_of_the_size_of_a_history_is_kept():
    """Memory grows by one number per layer, row and token, not by a set of slots per token."""

    def temporary(count: int) -> int:
        state = jax.eval_shape(lambda: ms.init_state(tiny.CONFIG, ms.TOVA(), 200))
        freed = jax.eval_shape(lambda state: start_record(state, count), state)
        tokens = jax.ShapeDtypeStruct((count,), jnp.int32)
        lowered = jax.jit(follow).lower(tiny.CONFIG, ms.TOVA(), abstract_params(tiny.CONFIG), state, freed, tokens)
        found = lowered.compile().memory_analysis()
        assert found is not None
        return found.temp_size_in_bytes

    less, more = temporary(1_000), temporary(9_000)
    assert more - less < 8_000 * 4 * 2 * 20  # positions of 201 slots in two layers would be 10 times that
