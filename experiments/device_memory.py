"""Memory of every device of a mesh, on paper: weights, states and what a step needs besides, and how many rows fit.

python -m experiments.device_memory
XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m experiments.device_memory --check

Nothing is computed: bytes follow from the shapes of weights and states and from how they lie on the mesh. --check
compiles decoding steps of small models for devices that are there, and holds XLA's own count against the arithmetic.
"""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import typer
from jax.sharding import AbstractMesh, NamedSharding
from rich.table import Table

import msrnn_jax as ms
from experiments.common.console import show
from experiments.common.options import Budgets
from experiments.common.origin import check_out, write_result
from experiments.common.shapes import SHAPES
from msrnn_jax.cli.errors import plain_errors
from msrnn_jax.cli.usage import Command
from msrnn_jax.devices.memory import largest_batch, working_bytes
from msrnn_jax.devices.sharding import DATA, MODEL, spell_mesh, split_letters
from msrnn_jax.io.units import GIB, spell_bytes
from msrnn_jax.model.state_ops import fork
from msrnn_jax.params import abstract_params

NAME = "device_memory"


@dataclasses.dataclass(frozen=True)
class Machine:
    """What there is to fill.

    Attributes:
      memory: bytes of one device.
      model: devices that share the heads, the MLP and the vocabulary; all there are.
    """

    name: str
    memory: int
    model: int


MACHINES = (Machine("one H100", 80 * 10**9, 1), Machine("v5e-8", 16 * GIB, 8))


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is counted.

    Attributes:
      full: tokens that full attention has room for.
    """

    shapes: tuple[str, ...] = ("llama-2-7b", "llama-3-70b")
    policy: str = "tova"
    budgets: tuple[int, ...] = (64, 256, 512, 2048)
    full: int = 4096
    batches: tuple[int, ...] = (1, 8, 64, 256)


def run(settings: Settings) -> list[dict[str, Any]]:
    """A row for every model, machine and budget, full attention last."""
    policy = ms.parse_policy(settings.policy)
    pairs = [*((policy, budget) for budget in settings.budgets), (ms.Full(), settings.full)]
    return [
        _row(shape, machine, policy, budget, settings.batches)
        for shape in settings.shapes
        for machine in MACHINES
        for policy, budget in pairs
    ]


def _row(shape: str, machine: Machine, policy: ms.Policy, budget: int, batches: Sequence[int]) -> dict[str, Any]:
    config = SHAPES[shape]
    mesh = AbstractMesh((1, machine.model), (DATA, MODEL))
    weights, state, working = count(config, policy, budget, mesh, 1)
    totals = {batch: weights + batch * (state + working) for batch in batches}
    return {
        "shape": shape,
        "machine": machine.name,
        "memory_bytes": machine.memory,
        "mesh": spell_mesh(mesh),
        "policy": str(policy),
        "budget": budget,
        "weight_bytes": weights,
        "state_bytes": state,
        "working_bytes": working,
        "total_bytes": totals,
        "largest_batch": largest_batch(machine.memory, weights, state + working),
    }


def count(config: ms.Config, policy: ms.Policy, budget: int, mesh: Any, batch: int) -> tuple[int, int, int]:
    """Bytes of one device: of the weights, of the states of a batch, and what a step needs for it besides.

    Args:
      batch: rows, a multiple of the mesh's axis `data`.
    """
    places = ms.shardings(config, policy, mesh)
    states = jax.eval_shape(lambda: fork(ms.init_state(config, policy, budget), batch))
    rows = batch // mesh.shape.get(DATA, 1)
    working = rows * working_bytes(part_of(config, mesh.shape.get(MODEL, 1)), policy, budget)
    return device_bytes(abstract_params(config), places.params), device_bytes(states, places.state), working


def device_bytes(tree: Any, places: Any) -> int:
    """Bytes that one device holds of arrays, or shapes of arrays, which lie as told."""

    def one(leaf: Any, place: NamedSharding) -> int:
        return math.prod(place.shard_shape(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize

    return sum(jax.tree.leaves(jax.tree.map(one, tree, places)))


def part_of(config: ms.Config, devices: int) -> ms.Config:
    """The sizes of what one of so many devices works on."""
    letters = {"N": "num_heads", "K": "num_kv_heads", "F": "mlp_dim", "V": "vocab_size"}
    names = [letters[letter] for letter in split_letters(config, devices)]
    return config.replace(**{name: getattr(config, name) // devices for name in names})


# XLA's own count.

SMALL = ms.Config(
    vocab_size=4096,
    model_dim=256,
    num_layers=4,
    num_heads=16,
    num_kv_heads=8,
    head_dim=32,
    mlp_dim=1024,
    dtype="float32",
)
CHECKED = ("data=1,model=1", "data=2,model=4", "data=1,model=8", "data=8,model=1")
CHECK_BATCH = 8


def check(policy: ms.Policy, budget: int) -> list[dict[str, Any]]:
    """For every mesh, XLA's bytes of one device for a decoding step of a small model, beside ours.

    Raises:
      ValueError: where there are not enough devices.
    """
    found = []
    for text in CHECKED:
        mesh = ms.parse_mesh(text)
        weights, states, working = count(SMALL, policy, budget, mesh, CHECK_BATCH)
        analysis = _compiled(policy, budget, mesh).memory_analysis()
        assert analysis is not None
        numbers = {"policy": str(policy), "budget": budget, "mesh": text, "batch": CHECK_BATCH}
        tokens = 4 * CHECK_BATCH // mesh.shape[DATA]
        numbers |= {"expected_arguments": weights + states + tokens, "expected_temporary": working}
        numbers |= {"arguments": analysis.argument_size_in_bytes, "temporary": analysis.temp_size_in_bytes}
        found.append(numbers)
    return found


def _compiled(policy: ms.Policy, budget: int, mesh: Any) -> Any:
    places = ms.shardings(SMALL, policy, mesh)

    def placed(tree: Any, where: Any) -> Any:
        return jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), tree, where)

    states = jax.eval_shape(lambda: fork(ms.init_state(SMALL, policy, budget), CHECK_BATCH))
    tokens = jax.ShapeDtypeStruct((CHECK_BATCH,), jnp.int32, sharding=places.rows)
    step = jax.jit(jax.vmap(partial(ms.step, SMALL, policy), (None, 0, 0)), donate_argnums=1)
    return step.lower(placed(abstract_params(SMALL), places.params), placed(states, places.state), tokens).compile()


def tables(rows: Sequence[dict[str, Any]], checked: Sequence[dict[str, Any]]) -> list[Table]:
    """What one device holds, and XLA's count, for reading."""
    made = Table("model", "machine", "policy", title="bytes of one device")
    batches = list(rows[0]["total_bytes"])
    for title in ("budget", "weights", "state of a row", *(f"batch {batch}" for batch in batches), "largest batch"):
        made.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        room = row["memory_bytes"]
        totals = [spell_bytes(total) + ("" if total <= room else " !") for total in row["total_bytes"].values()]
        cells = [str(row["budget"]), spell_bytes(row["weight_bytes"]), spell_bytes(row["state_bytes"])]
        made.add_row(row["shape"], row["machine"], row["policy"], *cells, *totals, f"{row['largest_batch']:,}")
    made.caption = "!: more than there is"
    if not checked:
        return [made]
    shown = Table("mesh", "policy", title=f"a small model, {CHECK_BATCH} rows: XLA's count and ours, of one device")
    for title in ("budget", "arguments", "ours of them", "temporary", "ours"):
        shown.add_column(title, justify="right", no_wrap=True)
    for row in checked:
        names = ("arguments", "expected_arguments", "temporary", "expected_temporary")
        shown.add_row(row["mesh"], row["policy"], str(row["budget"]), *(f"{row[name]:,}" for name in names))
    return [made, shown]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=Command, help=__doc__)
@plain_errors
def main(
    shape: Annotated[list[str] | None, typer.Option(help=f"Of a model, {', '.join(SHAPES)}; repeat it.")] = None,
    policy: Annotated[str, typer.Option(help="As in msrnn perplexity.")] = Settings.policy,
    budget: Budgets = None,
    full: Annotated[int, typer.Option(help="Tokens that full attention has room for.")] = Settings.full,
    batch: Annotated[list[int] | None, typer.Option(help="Rows; repeat it.")] = None,
    checking: Annotated[bool, typer.Option("--check", help="Also count with XLA, on 8 devices.")] = False,
    out: Annotated[pathlib.Path, typer.Option(help="JSON to write.")] = pathlib.Path("results/device_memory.json"),
) -> None:
    check_out(out)
    settings = Settings(
        shapes=tuple(shape or Settings.shapes),
        policy=policy,
        budgets=tuple(budget or Settings.budgets),
        full=full,
        batches=tuple(batch or Settings.batches),
    )
    unknown = [name for name in settings.shapes if name not in SHAPES]
    if unknown:
        raise ValueError(f"shape is {unknown[0]!r}; it must be one of {', '.join(SHAPES)}")
    if min(settings.batches) < 1:
        raise ValueError(f"batch is {min(settings.batches)}; it must be at least 1")
    rows = run(settings)
    checked = check(ms.parse_policy(policy), settings.budgets[0]) if checking else []
    write_result(out, NAME, settings, {"rows": rows, "checked": checked})
    show(*tables(rows, checked))


if __name__ == "__main__":
    app()
