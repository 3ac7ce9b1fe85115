"""Which kernels can do a chunk: what the switch asks for, and what TPU's and GPU's compilers make of a policy."""

import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from msrnn_jax.policies import Policy
from msrnn_jax.recurrence.kernel import Kernel, power, tiled
from msrnn_jax.state import LayerState, StepContext, View

SWITCH = "MSRNN_KERNELS"  # environment variable, read when a program is traced
CHOICES = ("auto", "on", "off")  # "on": on every platform, interpreted by JAX where there is no back end
LEAST = 32  # tokens of a chunk for which a kernel is worth its compilation
VMEM = 14 * 2**20  # bytes of a TPU's vector memory that a kernel may take, of the 16 MiB that Mosaic gives it
MOST = 2**19  # numbers of a token's products that Triton is given; with more it compiles for minutes

# What both back ends lower; anything else leaves the chunk to the scan. `sign`, and so `//`, is not among them: Mosaic
# asks the device for its kind there, and programs are also made for devices that are not there.
LOWERED = set(
    "add sub mul div neg abs max min exp exp2 log log1p expm1 sqrt rsqrt square integer_pow pow tanh logistic erf "
    "eq ne lt le gt ge and or not xor select_n clamp convert_element_type bitcast_convert_type broadcast_in_dim iota "
    "reduce_sum reduce_max reduce_min shift_left shift_right_logical shift_right_arithmetic floor ceil round is_finite "
    "squeeze expand_dims stop_gradient copy sin cos".split()
)
DTYPES = [jnp.dtype(name) for name in ("float32", "int32", "uint32", "bool")]


def kernels_for(
    policy: Policy,
    layer: LayerState,
    context: StepContext,
    products: Float[Array, "K T G M"],
    index: int,
    window: int | None,
    width: int,
) -> dict[str, Kernel]:
    """The kernels that can do a chunk, by platform; "default" is one for all others, if it is asked for.

    Raises:
      ValueError: where the switch is set to something unknown.
    """
    switch = os.environ.get(SWITCH, "auto")
    if switch not in CHOICES:
        raise ValueError(f"{SWITCH} is {switch!r}; it must be one of {', '.join(CHOICES)}")
    # XLA cannot share out a kernel by itself; where there are many devices, a mesh must say what lies where.
    known = jax.device_count() == 1 or not jax.sharding.get_abstract_mesh().empty
    worth = len(context.token) >= LEAST and jax.default_backend() != "cpu"  # where tracing it would be in vain
    if switch == "off" or (switch == "auto" and not (known and worth)):
        return {}
    bare = without_arrays(policy)
    kernels = {name: Kernel(bare, index, window, context.mode, width, name) for name in ("tpu", "cuda")}
    if switch == "on":
        kernels["default"] = kernels["tpu"]._replace(interpret=True)
    assert context.hidden is not None
    hidden = jax.ShapeDtypeStruct(context.hidden.shape[1:], context.hidden.dtype)
    return {name: kernel for name, kernel in kernels.items() if not why_not(kernel, layer, products, hidden)}


def without_arrays(policy: Policy) -> Policy:
    """The same with None for its arrays: what a kernel runs where only `init_token` looks at them, before it."""
    leaves, tree = jax.tree.flatten(policy)
    return jax.tree.unflatten(tree, [None] * len(leaves)) if leaves else policy


def why_not(
    kernel: Kernel, layer: LayerState, products: Float[Array, "K T G M"], hidden: jax.ShapeDtypeStruct
) -> str | None:
    """Why a chunk is left to the scan; None where the kernel can do it."""
    heads, _, group, slots = products.shape
    if not kernel.policy.one_by_one:
        return "the policy forgets many at once"
    if kernel.policy.has_row_stats or kernel.policy.biases:
        return "the policy keeps statistics of rows, or changes attention"
    if layer.budget.ndim:
        return "every head has its own budget"
    if products.dtype != jnp.float32 and not kernel.interpret:
        return f"attention is computed in {products.dtype}"
    # Two blocks of products, and what is computed of one token's.
    if kernel.platform == "tpu" and 6 * tiled(heads, group, slots) > VMEM:
        return "a token's products do not fit into a TPU's memory"
    if kernel.platform == "cuda" and heads * group * power(slots) > MOST:
        return "a token's products are too many for a GPU's kernel"
    if kernel.platform == "cuda" and any(size != power(size) for size in (heads, group)):
        return f"a GPU's kernels take powers of two; there are {heads} KV heads and {group} query heads for each"
    return _unknown(kernel, layer, products, hidden)


def _unknown(
    kernel: Kernel, layer: LayerState, products: Float[Array, "K T G M"], hidden: jax.ShapeDtypeStruct
) -> str | None:
    """What the policy does that a kernel cannot do."""
    heads, _, group, slots = products.shape

    def decide(unseen: tuple[Array, ...], stats: Any, positions: Array, probs: Array, number: Array) -> Any:
        query, keys, values, hidden = unseen
        view = View(probs, positions, number, number, query, keys, values, kernel.index, hidden)
        stats = kernel.policy.observe(stats, view)
        score = kernel.policy.score(LayerState(keys, values, positions, stats, number, index=kernel.index), number)
        return kernel.policy.init(layer.num_rows, slots), stats, score

    query = jax.ShapeDtypeStruct((heads * group, kernel.width), layer.keys.dtype)
    probs = jax.ShapeDtypeStruct((heads, group, slots), products.dtype)
    unseen = (query, layer.keys, layer.values, hidden)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    try:
        traced = jax.make_jaxpr(decide)(unseen, layer.stats, layer.positions, probs, number)
    except Exception:  # it cannot do without its arrays, or fails anyway, as the scan will tell
        return "the policy has arrays"
    if traced.consts:
        return "the policy has arrays"
    jaxpr = traced.jaxpr
    used = {id(variable) for equation in jaxpr.eqns for variable in equation.invars}
    used |= {id(variable) for variable in jaxpr.outvars}
    if any(id(variable) in used for variable in jaxpr.invars[: len(unseen)]):
        return "the policy looks at queries, keys, values or the layer's input"
    for equation in _equations(jaxpr):
        if equation.primitive.name not in LOWERED:
            return f"the policy uses {equation.primitive.name}"
        for made in (variable.aval for variable in equation.outvars):
            if made.dtype not in DTYPES and not kernel.interpret:
                return f"the policy computes in {made.dtype}"
            if kernel.platform == "cuda" and any(size not in (slots, power(size)) for size in made.shape):
                return f"a GPU's kernels take powers of two; the policy makes an array {made.shape}"
    return None


def _equations(jaxpr: Any) -> Iterator[Any]:
    """All equations, those within functions included."""
    for equation in jaxpr.eqns:
        inner = [value for value in equation.params.values() if hasattr(value, "jaxpr") or hasattr(value, "eqns")]
        for one in inner:
            yield from _equations(getattr(one, "jaxpr", one))
        if not inner:
            yield equation
