"""Every public name, imported from where it is made."""

from msrnn_jax.checkpoint.load import load
from msrnn_jax.checkpoint.save import save
from msrnn_jax.checkpoint.state_file import load_state, save_state
from msrnn_jax.checkpoint.tokenizer import load_tokenizer
from msrnn_jax.config import Config, Rope
from msrnn_jax.devices.sharding import Shardings, parse_mesh, shardings
from msrnn_jax.evaluation.losses import nll
from msrnn_jax.generation.generate import generate, stream
from msrnn_jax.generation.sampling import Chain, Greedy, MinP, Sampler, Temperature, TopK, TopP
from msrnn_jax.generation.streaming import stream_text
from msrnn_jax.io.environment import keep_compilations
from msrnn_jax.model.cell import MultiStateCell
from msrnn_jax.model.extend import extend
from msrnn_jax.model.llama import step
from msrnn_jax.model.lora import attach_adapters, detach_adapters, init_adapters, merge_adapters
from msrnn_jax.model.prefill import prefill
from msrnn_jax.model.state_ops import adopt, compress, fork, hand_over
from msrnn_jax.params import Adapter, LayerParams, LowRank, Params, init_params
from msrnn_jax.policies import H2O, TOVA, Full, Policy, Random, Window, parse_policy
from msrnn_jax.recurrence.slots import init_state
from msrnn_jax.state import EMPTY, LayerInfo, LayerState, MultiState, View
from msrnn_jax.testing.contract import check_contract

__all__ = [
    "EMPTY",
    "H2O",
    "TOVA",
    "Adapter",
    "Chain",
    "Config",
    "Full",
    "Greedy",
    "LayerInfo",
    "LayerParams",
    "LayerState",
    "LowRank",
    "MinP",
    "MultiState",
    "MultiStateCell",
    "Params",
    "Policy",
    "Random",
    "Rope",
    "Sampler",
    "Shardings",
    "Temperature",
    "TopK",
    "TopP",
    "View",
    "Window",
    "adopt",
    "attach_adapters",
    "check_contract",
    "compress",
    "detach_adapters",
    "extend",
    "fork",
    "generate",
    "hand_over",
    "init_adapters",
    "init_params",
    "init_state",
    "keep_compilations",
    "load",
    "load_state",
    "load_tokenizer",
    "merge_adapters",
    "nll",
    "parse_mesh",
    "parse_policy",
    "prefill",
    "save",
    "save_state",
    "shardings",
    "step",
    "stream",
    "stream_text",
]
