"""What a checkpoint is and what it takes, from its settings alone: no weights are read."""

import json
import os
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from msrnn_jax.checkpoint.layout import PARAMS_FOLDER, SOURCE_FILE, TOKENIZER_FILE, existing, read_config
from msrnn_jax.checkpoint.load import stored_params
from msrnn_jax.checkpoint.tokenizer import load_tokenizer
from msrnn_jax.config import Config
from msrnn_jax.devices.memory import largest_batch, part_sizes, state_bytes, working_bytes
from msrnn_jax.io.units import tree_bytes
from msrnn_jax.params import Params, abstract_params
from msrnn_jax.policies import Policy
from msrnn_jax.recurrence.sliding_window import room_for
from msrnn_jax.recurrence.slots import slots_of

POLICIES = ("full", "tova")
BUDGETS = (64, 128, 256, 512, 1024, 2048)


def checkpoint_info(
    checkpoint: str | os.PathLike[str],
    memory: int,
    *,
    policies: Sequence[Policy],
    budgets: Sequence[int] = BUDGETS,
    dtype: str | None = None,
) -> dict[str, Any]:
    """Everything `msrnn info` prints, as JSON values.

    Args:
      memory: bytes that weights and states may take.
      policies: one that forgets nothing has room for the model's context length, or its sliding window,
        whatever the budgets.
      dtype: of weights and states; by default the checkpoint's.

    Raises:
      ValueError: for no checkpoint, and for a policy, budget or dtype out of range.
    """
    stored, config = read_config(checkpoint), read_config(checkpoint, dtype=dtype)
    shapes = _weights(checkpoint, config)
    weights = tree_bytes(shapes)
    return {
        "checkpoint": str(checkpoint),
        "config": stored.to_dict(),
        "parameters": _parameters(shapes, stored, config),
        "dtype": config.dtype,
        "memory_bytes": memory,
        "weight_bytes": weights,
        "states": [
            _state(config, policy, budget, memory - weights)
            for policy in policies
            for budget in (budgets if policy.forgets else [room_for(config, "absolute", config.max_length)])
        ],
        "tokenizer": _tokenizer(checkpoint),
        "source": _source(checkpoint),
    }


def _weights(checkpoint: str | os.PathLike[str], config: Config) -> Params:
    """Their shapes; for adapters, of which the config says nothing, Orbax is asked, which is slow to import."""
    index = existing(checkpoint) / PARAMS_FOLDER / "_METADATA"
    adapted = index.is_file() and b"adapter" in index.read_bytes()
    return stored_params(checkpoint, config) if adapted else abstract_params(config)


def _parameters(weights: Params, stored: Config, config: Config) -> list[dict[str, Any]]:
    """Every part and, last, their sum: its count, and its bytes by dtype."""
    counts = part_sizes(weights)
    dtypes = dict.fromkeys((stored.dtype, config.dtype, "float32", "bfloat16"))
    return [
        {"part": part, "count": count, "bytes": {name: count * jnp.dtype(name).itemsize for name in dtypes}}
        for part, count in {**counts, "all": sum(counts.values())}.items()
    ]


def _state(config: Config, policy: Policy, budget: int, room: int) -> dict[str, Any]:
    state, working = state_bytes(config, policy, budget), working_bytes(config, policy, budget)
    return {
        "policy": str(policy),
        "budget": budget,
        "slots": slots_of(config, policy, budget),
        "state_bytes": state,
        "working_bytes": working,
        "largest_batch": largest_batch(room, 0, state + working),
    }


def _tokenizer(checkpoint: str | os.PathLike[str]) -> dict[str, Any] | None:
    """None where the checkpoint was converted without one."""
    if not (existing(checkpoint) / TOKENIZER_FILE).is_file():
        return None
    tokenizer = load_tokenizer(checkpoint)
    return {
        "vocabulary": tokenizer.backend.get_vocab_size(),
        "bos": _named(tokenizer, tokenizer.bos),
        "stop": [_named(tokenizer, token) for token in tokenizer.stop],
        "chat_template": tokenizer.template is not None,
    }


def _named(tokenizer: Any, token: int | None) -> dict[str, Any] | None:
    return None if token is None else {"id": token, "text": tokenizer.backend.id_to_token(token)}


def _source(checkpoint: str | os.PathLike[str]) -> Any:
    """What the converter wrote of where the weights come from; None where nothing is known."""
    path = existing(checkpoint) / SOURCE_FILE
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} cannot be used: {error}") from None
