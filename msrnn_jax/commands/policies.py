"""How commands read `--policy`."""

import contextlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msrnn_jax.policies import Policy


def read_policy(text: str, config: Any) -> "Policy":
    """A policy from text, held to the contract if it is not one of ours: before the work, and in about a second.

    Args:
      config: of the model it is to run on.

    Raises:
      ValueError: for a text that names no policy, and for a policy that breaks the contract.
    """
    from msrnn_jax.contract import check_contract
    from msrnn_jax.policies import POLICIES, parse_policy

    with contextlib.redirect_stdout(sys.stderr):  # what somebody's code prints is no result
        policy = parse_policy(text)
        if type(policy) not in POLICIES.values():
            check_contract(policy, config)
    return policy
