"""`step` and `extend` of a model, or of a few of its layers, compiled for devices that are not there."""

import dataclasses
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import msrnn_jax as ms
from experiments.common.shapes import SHAPES
from experiments.compiled.hlo import Program
from experiments.compiled.targets import described, target_devices
from msrnn_jax.io.units import tree_bytes
from msrnn_jax.model.state_ops import fork
from msrnn_jax.params import abstract_params

PROGRAMS = ("step", "extend")
CHUNKS = 4  # of a text; a loop over one would be none


@dataclasses.dataclass(frozen=True)
class Case:
    """What is compiled.

    Attributes:
      batch: rows; 0 for one state without a batch.
      mesh: devices that share the batch, see `parse_mesh`; without a batch one.
      chunk: tokens that `extend` takes at once; by default no shape of a weight has its factors.
    """

    target: str
    program: str
    shape: str = "llama-2-7b"
    dtype: str = "bfloat16"
    layers: int = 1
    policy: str = "tova"
    budget: int = 512
    positions: str = "absolute"
    batch: int = 0
    mesh: str = "data=1,model=1"
    chunk: int = 120

    @property
    def config(self) -> ms.Config:
        return SHAPES[self.shape].replace(num_layers=self.layers, dtype=self.dtype)

    @property
    def tokens(self) -> int:
        """That a row reads."""
        return 1 if self.program == "step" else CHUNKS * self.chunk

    def __str__(self) -> str:
        return " ".join(f"{value}" for value in dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What came of it, in bytes.

    Attributes:
      weights: of the whole model; and `state` of the whole batch.
      total: of one device: what is given to it, temporaries, and results that are not written in place.
      seconds: that tracing and compiling took.
      cpu_seconds: that all cores together worked for it, whatever else they did.
    """

    case: Case
    program: Program
    seconds: float
    cpu_seconds: float
    weights: int
    state: int
    temporaries: int
    aliased: int
    total: int

    def weights_copied(self) -> list[str]:
        """What is written of the size of a matrix of weights, or of the embedding."""
        leaves = jax.tree_util.tree_leaves_with_path(abstract_params(self.case.config))
        return self.program.of_size({leaf.size: jax.tree_util.keystr(path) for path, leaf in leaves if leaf.ndim == 2})

    def caches_copied(self) -> list[str]:
        """What is written of the size of a layer's keys or values, beyond those that are returned."""
        config, rows = self.case.config, max(1, self.case.batch)
        size = rows * config.num_kv_heads * (self.case.budget + 1) * config.head_dim
        return self.program.of_size({size: "cache"})[2 * config.num_layers :]


def compile_case(case: Case) -> Compiled:
    """Compiles a case; the state is donated, as a decoding loop does."""
    config, policy = case.config, ms.parse_policy(case.policy)
    params = abstract_params(config)
    state = jax.eval_shape(lambda: ms.init_state(config, policy, case.budget, positions=case.positions))
    tokens = jax.ShapeDtypeStruct((case.tokens,) if case.program == "extend" else (), jnp.int32)
    if case.batch:
        state, tokens = (jax.eval_shape(partial(fork, count=case.batch), tree) for tree in (state, tokens))

    def run(params: ms.Params, state: ms.MultiState, tokens: Any) -> Any:
        def one(state: ms.MultiState, tokens: Any) -> Any:
            if case.program == "step":
                return ms.step(config, policy, params, state, tokens)
            return ms.nll(config, policy, params, state, tokens, tokens, chunk=case.chunk)

        return (jax.vmap(one) if case.batch else one)(state, tokens)

    mesh = ms.parse_mesh(case.mesh, target_devices(case.target))
    places = ms.shardings(config, policy, mesh, positions=case.positions)
    held = places.state if case.batch else jax.tree.map(lambda _: places.whole, state)
    read = places.rows if case.batch else places.whole
    args = (put(params, places.params), put(state, held), put(tokens, read))
    started = time.perf_counter(), time.process_time()
    with described(case.target, mesh):
        done = jax.jit(run, donate_argnums=1).lower(*args).compile()
    seconds = time.perf_counter() - started[0], time.process_time() - started[1]
    memory, text = done.memory_analysis(), done.as_text()
    assert memory is not None and text is not None
    return Compiled(
        case,
        Program(text),
        *seconds,
        tree_bytes(params),
        tree_bytes(state),
        memory.temp_size_in_bytes,
        memory.alias_size_in_bytes,
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
    )


def put(tree: Any, places: Any) -> Any:
    """Shapes of arrays that lie as told."""
    return jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), tree, places)
