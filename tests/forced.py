"""A model that writes what it is told to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import msrnn_jax as ms
from msrnn_jax.generation.decoding import BLOCK, Block, DecodingState


def force(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes every `TextStream` of one row write the tokens in the list returned, which its state sees."""
    script: list[int] = []

    def decode_block(config, policy, params, draft, rules, most, sampler):
        done = int(draft.lengths[0])
        new = script[done : min(done + most, int(rules.limits[0]))]
        padded = np.zeros(BLOCK, np.int32)
        padded[: len(new)] = new
        state = jax.tree.map(lambda leaf: leaf[0], draft.states)
        state, logits = ms.prefill(config, policy, params, state, padded, len(new))
        after = DecodingState(
            states=jax.tree.map(lambda leaf: leaf[None], state),
            logits=logits[None],
            running=jnp.asarray([new[-1] not in rules.stop.tolist()]),
            lengths=jnp.asarray([done + len(new)], jnp.int32),
        )
        return Block(padded[None], np.asarray([len(new)]), after)

    monkeypatch.setattr("msrnn_jax.generation.streaming.decode_block", decode_block)
    return script
