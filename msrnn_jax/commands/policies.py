"""How commands read `--policy`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msrnn_jax.policies import Policy


def read_policy(text: str, config: Any) -> "Policy":
    """A policy from text."""
    del config
    from msrnn_jax.policies import parse_policy

    return parse_policy(text)
