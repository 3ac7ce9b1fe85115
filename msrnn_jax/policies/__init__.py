"""Compression policies: what a bounded multi-state RNN forgets."""

from msrnn_jax.policies.base import Policy
from msrnn_jax.policies.full import Full
from msrnn_jax.policies.h2o import H2O
from msrnn_jax.policies.random import Random
from msrnn_jax.policies.registry import POLICIES, parse_policy
from msrnn_jax.policies.tova import TOVA
from msrnn_jax.policies.window import Window

__all__ = ["H2O", "POLICIES", "TOVA", "Full", "Policy", "Random", "Window", "parse_policy"]
