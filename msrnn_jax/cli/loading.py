"""How commands open a checkpoint and read a policy."""

import contextlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msrnn_jax.generation.conversation import ChatModel
    from msrnn_jax.policies import Policy


def open_model(checkpoint: str, dtype: str | None = None) -> "ChatModel":
    """Config, weights and tokenizer of a checkpoint; what is compiled for them from now on is kept for next time."""
    from msrnn_jax.checkpoint.load import load
    from msrnn_jax.checkpoint.tokenizer import load_tokenizer
    from msrnn_jax.generation.conversation import ChatModel
    from msrnn_jax.io.environment import keep_compilations

    keep_compilations()
    tokenizer = load_tokenizer(checkpoint)
    config, params = load(checkpoint, dtype=dtype)
    return ChatModel(config, params, tokenizer)


def read_policy(text: str, config: Any) -> "Policy":
    """A policy from text, held to the contract if it is not one of ours: before the work, and in about a second.

    Args:
      config: of the model it is to run on.

    Raises:
      ValueError: for a text that names no policy, and for a policy that breaks the contract.
    """
    from msrnn_jax.policies import POLICIES, parse_policy
    from msrnn_jax.testing.contract import check_contract

    with contextlib.redirect_stdout(sys.stderr):  # what somebody's code prints is no result
        policy = parse_policy(text)
        if type(policy) not in POLICIES.values():
            check_contract(policy, config)
    return policy
