"""A model of two layers whose sizes are all different, and the policies every test runs through."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

import msrnn_jax as ms

CONFIG = ms.Config(
    vocab_size=50,
    model_dim=24,
    num_layers=2,
    num_heads=6,
    num_kv_heads=3,
    head_dim=10,
    mlp_dim=40,
    rope=ms.Rope(theta=500.0),
)

POLICIES = [
    ms.Full(),
    ms.Random(seed=3),
    ms.Random(scope="head", sinks=1),
    ms.Window(),
    ms.Window(sinks=1),
    ms.Window(sinks=4),
    ms.H2O(),
    ms.H2O(recent=0),
    ms.H2O(scope="layer", recent=3),
    ms.H2O(sinks=2, recent=2),
    ms.TOVA(),
    ms.TOVA(scope="head"),
    ms.TOVA(sinks=1),
    ms.TOVA(sinks=2, recent=3),
    ms.TOVA(scope="head", recent=None),
]

SPELLED = [str(policy) for policy in POLICIES]


@cache
def params(dtype: str = "float32", seed: int = 0, config: ms.Config = CONFIG) -> ms.Params:
    """Random weights; queries are scaled up so that attention is far from uniform."""
    with jax.ensure_compile_time_eval():  # the first caller may be inside a trace
        made = ms.init_params(config.replace(dtype="float32"), jax.random.key(seed))
        layers = tuple(layer.replace(query=4 * layer.query) for layer in made.layers)
        return jax.tree.map(lambda leaf: leaf.astype(dtype), made.replace(layers=layers))


def tokens(count: int, seed: int = 0) -> np.ndarray:
    """Random token numbers [count] int32."""
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, count).astype(np.int32)


def budget_for(policy: ms.Policy, count: int, budget: int = 8) -> int:
    """The budget, or room for everything where the policy forgets nothing."""
    return budget if policy.forgets else count


def held(layer: ms.LayerState) -> list[list[int]]:
    """Positions held by every row, ascending."""
    return [sorted(int(p) for p in row if p != ms.EMPTY) for row in np.asarray(layer.positions)]


def unroll(config: ms.Config, policy: ms.Policy, params: ms.Params, state: ms.MultiState, tokens: jax.Array):
    """Steps over tokens [T]: the last state, logits [T, V], and positions held [T, #K, S] for every layer."""

    def one(state: ms.MultiState, token: jax.Array):
        state, logits = ms.step(config, policy, params, state, token)
        return state, (logits, [layer.positions for layer in state.layers])

    return jax.lax.scan(one, state, jnp.asarray(tokens))


unroll_jit = jax.jit(unroll)
