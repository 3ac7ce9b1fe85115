"""The policies and budgets that an experiment compares with full attention."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from msrnn_jax.config import Config
from msrnn_jax.evaluation.sweep import check_settings
from msrnn_jax.policies import Policy, parse_policy
from msrnn_jax.policies.source import source_hash

FULL, BASELINE = "full", "baseline"  # as keys name the full model, and the one that reads a short context


def policies_of(
    config: Config, texts: Sequence[str], budgets: Sequence[int], length: int, positions: Sequence[str] = ("absolute",)
) -> list[Policy]:
    """Policies that forget, each once.

    Args:
      length: tokens of the shortest text that is read, which no budget may hold.
      positions: all ways in which keys are rotated.

    Raises:
      ValueError: for a policy that forgets nothing, and for budgets out of range.
    """
    wrong = [budget for budget in budgets if not 2 <= budget < length]
    if wrong:
        raise ValueError(f"budget is {wrong[0]}; it must be from 2 to {length - 1}, less than what is read")
    policies = list(dict.fromkeys(map(parse_policy, texts)))
    for policy in policies:
        if not policy.forgets:
            raise ValueError(f"policy is {policy}, which forgets nothing; name those that forget")
        for mode in positions:
            check_settings(config, policy, np.asarray([length]), budgets, positions=mode)
    return policies


def check_keeps_no_prompt(policies: Sequence[Policy]) -> None:
    """Refuses policies that keep the prompt, for experiments whose prompts outgrow every budget."""
    for policy in policies:
        if policy.prompt:
            raise ValueError(f"policy is {policy}, which keeps the prompt, here the whole text; give it prompt=False")


def named(policy: Policy | str) -> dict[str, Any]:
    """What a key says of a policy: its text, and a hash of the code of one that is not the library's.

    The short context is no policy, and goes by its name.
    """
    if policy == BASELINE:
        return {"policy": BASELINE}
    policy = parse_policy(policy) if isinstance(policy, str) else policy
    code = source_hash(policy)
    return {"policy": str(policy), **({} if code is None else {"policy_sha256": code})}
