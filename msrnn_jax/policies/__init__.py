"""Compression policies: what a bounded multi-state RNN forgets."""

from msrnn_jax.policies.base import Policy
from msrnn_jax.policies.by_attention.a2sf import A2SF
from msrnn_jax.policies.by_attention.keyformer import Keyformer
from msrnn_jax.policies.by_attention.roco import RoCo
from msrnn_jax.policies.by_keys.cur import CUR
from msrnn_jax.policies.by_keys.gate import Gate, init_gate, save_gate
from msrnn_jax.policies.by_keys.keydiff import KeyDiff
from msrnn_jax.policies.by_keys.knorm import Knorm
from msrnn_jax.policies.by_keys.lagkv import LagKV
from msrnn_jax.policies.by_keys.learned import Learned
from msrnn_jax.policies.by_queries.expected import ExpectedAttention
from msrnn_jax.policies.by_queries.gkv import GKV
from msrnn_jax.policies.by_queries.morphkv import MorphKV
from msrnn_jax.policies.by_queries.rkv import RKV
from msrnn_jax.policies.by_queries.snapkv import SnapKV
from msrnn_jax.policies.by_queries.snapkvd import SnapKVD
from msrnn_jax.policies.by_queries.triattention import TriAttention
from msrnn_jax.policies.by_queries.window import ObservationWindow
from msrnn_jax.policies.full import Full
from msrnn_jax.policies.h2o import H2O
from msrnn_jax.policies.random import Random
from msrnn_jax.policies.registry import POLICIES, parse_policy
from msrnn_jax.policies.tova import TOVA
from msrnn_jax.policies.window import Window

__all__ = [
    "A2SF",
    "CUR",
    "GKV",
    "H2O",
    "POLICIES",
    "RKV",
    "TOVA",
    "ExpectedAttention",
    "Full",
    "Gate",
    "KeyDiff",
    "Keyformer",
    "Knorm",
    "LagKV",
    "Learned",
    "MorphKV",
    "ObservationWindow",
    "Policy",
    "Random",
    "RoCo",
    "SnapKV",
    "SnapKVD",
    "TriAttention",
    "Window",
    "init_gate",
    "parse_policy",
    "save_gate",
]
