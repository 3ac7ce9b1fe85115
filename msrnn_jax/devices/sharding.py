"""Where weights, states and batches go on a mesh of devices: rows over `data`, heads and widths over `model`."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from msrnn_jax.config import Config
from msrnn_jax.params import Params, axis_lengths, param_axes
from msrnn_jax.policies import Policy
from msrnn_jax.policies.budgets import least_budget
from msrnn_jax.recurrence.slots import init_state
from msrnn_jax.state import MultiState

DATA, MODEL = "data", "model"  # the axes of a mesh
SPLIT = {"heads": "NK", "mlp": "F", "vocabulary": "V"}  # what is shared out over `model`, by axis letters


class Shardings(NamedTuple):
    """A `jax.sharding.NamedSharding` for everything, for `jax.device_put`, `load`, `jax.jit` and constraints."""

    params: Params
    state: MultiState  # of a batch, leaves [B, ...]
    rows: NamedSharding  # whatever else has one entry, or row, for each row of a batch: [B, ...]
    whole: NamedSharding  # the same on every device


def shardings(config: Config, policy: Policy, mesh: Mesh | AbstractMesh, *, positions: str = "absolute") -> Shardings:
    """How a model and a batch of its states lie on a mesh.

    Rows of a batch are shared out over the axis `data`. Over `model`, query and KV heads are, with their slots;
    the MLP's width; and the vocabulary: each as far as the axis divides it, else every device has all of it. Heads
    go by KV heads, so that a group stays together. A policy whose scope is the layer then needs one number a slot from
    every device, if it looks at attention: one small all-reduce for each layer and token.

    Args:
      mesh: with the axes `data` and `model`, or one of them; see `parse_mesh`.
      positions: as in `init_state`.

    Raises:
      ValueError: for a mesh with other axes, and for a model that cannot be shared out over `model` at all.
    """
    other = [name for name in mesh.axis_names if name not in (DATA, MODEL)]
    if other:
        raise ValueError(f"mesh has the axis {other[0]!r}; it may have {DATA!r} and {MODEL!r}")
    split = split_letters(config, mesh.shape.get(MODEL, 1))
    data = DATA if DATA in mesh.axis_names else None

    def weight(axes: str) -> NamedSharding:  # of heads and their width, heads stand first and stay whole
        return NamedSharding(mesh, PartitionSpec(*(MODEL if axis[0] in split else None for axis in axes.split())))

    def leaf(one: jax.ShapeDtypeStruct, wider: jax.ShapeDtypeStruct) -> NamedSharding:
        # What has an entry for every KV head is told by a model with more of them.
        by_head = "K" in split and one.shape[:1] != wider.shape[:1]
        return NamedSharding(mesh, PartitionSpec(data, MODEL) if by_head else PartitionSpec(data))

    made = partial(_state_shapes, policy, positions)
    more = config.replace(num_heads=2 * config.num_heads, num_kv_heads=2 * config.num_kv_heads)
    state = jax.tree.map(leaf, made(config), made(more))
    return Shardings(
        params=jax.tree.map(weight, param_axes(config)),
        state=state,
        rows=NamedSharding(mesh, PartitionSpec(data)),
        whole=NamedSharding(mesh, PartitionSpec()),
    )


def _state_shapes(policy: Policy, positions: str, config: Config) -> MultiState:
    budget = least_budget(config.num_layers, policy)
    return jax.eval_shape(lambda: init_state(config, policy, budget, positions=positions))


def split_letters(config: Config, devices: int) -> set[str]:
    """The axis letters that are shared out over so many devices.

    Raises:
      ValueError: where there is none.
    """
    length = axis_lengths(config)
    if devices == 1:
        return set()
    found = {name: all(length[letter] % devices == 0 for letter in letters) for name, letters in SPLIT.items()}
    if not any(found.values()):
        raise ValueError(
            f"mesh: {MODEL}={devices} divides neither the KV heads ({length['K']}), nor the MLP's width "
            f"({length['F']}), nor the vocabulary ({length['V']})"
        )
    return {letter for name, letters in SPLIT.items() if found[name] for letter in letters}


def parse_mesh(text: str, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh from text such as "data=4,model=2", over the first devices there are.

    Args:
      devices: to take them from; None: all of this process.

    Raises:
      ValueError: for other text, naming what it must be, and where there are not as many devices.
    """
    lengths: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        if name not in (DATA, MODEL) or name in lengths or not number.isdecimal() or int(number) < 1:
            raise ValueError(f"mesh is {text!r}; it must be like {DATA}=4,{MODEL}=2")
        lengths[name] = int(number)
    shape = [lengths.get(name, 1) for name in (DATA, MODEL)]
    devices = jax.devices() if devices is None else devices
    if math.prod(shape) > len(devices):
        raise ValueError(f"mesh is {text!r}, which takes {math.prod(shape)} devices; there are {len(devices)}")
    return jax.make_mesh(shape, (DATA, MODEL), axis_types=(AxisType.Auto,) * 2, devices=devices[: math.prod(shape)])


def spell_mesh(mesh: Mesh | AbstractMesh) -> str:
    """The text that `parse_mesh` makes a mesh of."""
    return ",".join(f"{name}={length}" for name, length in mesh.shape.items())


def put_rows(tree: Any, sharding: NamedSharding) -> Any:
    """Host arrays [B, ...], the same in every process, as arrays on the devices of a mesh."""
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, lambda place: leaf[place]), tree
    )
