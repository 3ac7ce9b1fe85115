"""Every public name, imported from where it is made."""

from msrnn_jax.adopt import adopt
from msrnn_jax.cell import MultiStateCell
from msrnn_jax.checkpoint import load, save
from msrnn_jax.compress import compress
from msrnn_jax.config import Config, Rope
from msrnn_jax.contract import check_contract
from msrnn_jax.evaluate import nll
from msrnn_jax.extend import extend
from msrnn_jax.fork import fork
from msrnn_jax.generate import generate, stream
from msrnn_jax.llama import step
from msrnn_jax.low_rank import attach_adapters, detach_adapters, init_adapters, merge_adapters
from msrnn_jax.params import Adapter, LayerParams, LowRank, Params, init_params
from msrnn_jax.policies import H2O, TOVA, Full, Policy, Random, Window, parse_policy
from msrnn_jax.prefill import prefill
from msrnn_jax.sampling import Chain, Greedy, MinP, Sampler, Temperature, TopK, TopP
from msrnn_jax.sharding import Shardings, parse_mesh, shardings
from msrnn_jax.slots import init_state
from msrnn_jax.state import EMPTY, LayerState, MultiState, View
from msrnn_jax.state_file import load_state, save_state
from msrnn_jax.tokenizer import load_tokenizer
from msrnn_jax.writing import stream_text

__all__ = [
    "EMPTY",
    "H2O",
    "TOVA",
    "Adapter",
    "Chain",
    "Config",
    "Full",
    "Greedy",
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
    "init_adapters",
    "init_params",
    "init_state",
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
