"""Memory of every device of a mesh, on paper: weights, states and what a step needs besides, and how many rows fit.

python -m experiments.device_memory
JAX_PLATFORMS=cpu .venv-compiled/bin/python -m experiments.device_memory --check

Nothing is computed: bytes follow from the shapes of weights and states and from how they lie on the mesh. --check takes
the compilers of a TPU v5e and an H100, which `make compiled` installs. They make a decoding step of LLaMA-2-7B and
LLaMA-3-8B with TOVA at 512, for one device and for four, with all layers, since what few need does not tell what many
do. What they count for one device must be at most the arithmetic's, and that at most 10 % more; what they refuse for
its size must be too large on paper, too. Exit code 1 if one is not.
"""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import typer
from jax.sharding import AbstractMesh, NamedSharding
from rich.console import Console
from rich.table import Table

import msrnn_jax as ms
from experiments.common.console import say, show
from experiments.common.options import Budgets
from experiments.common.origin import check_out, write_result
from experiments.common.shapes import SHAPES
from experiments.compiled.programs import Case, compile_case
from experiments.compiled.targets import target_devices
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
      target: what it is made of, by the name of its compiler.
      model: devices that share the heads, the MLP and the vocabulary; all there are.
    """

    name: str
    target: str
    model: int


MACHINES = (Machine("one H100", "h100", 1), Machine("v5e-8", "v5e", 8))
MEMORY = {"h100": 80 * 10**9, "v5e": 63 * GIB // 4}  # of one device; a v5e has 16 GiB, of which programs get 15.75
# What a step takes besides for a layer, whatever the batch: on a v5e at most 1.84 MB of LLaMA-2-7B, which its compiler
# tells nothing of (as much as the program); on an H100 the parts that products of one row are summed in.
BESIDE = 2 * 2**20


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
    config, memory = SHAPES[shape], MEMORY[machine.target]
    mesh = AbstractMesh((1, machine.model), (DATA, MODEL))
    one = count(config, policy, budget, mesh, 1)
    fixed, each = one.weights + one.beside, one.states + one.working
    return {
        "shape": shape,
        "machine": machine.name,
        "memory_bytes": memory,
        "mesh": spell_mesh(mesh),
        "policy": str(policy),
        "budget": budget,
        "weight_bytes": one.weights,
        "beside_bytes": one.beside,
        "state_bytes": one.states,
        "working_bytes": one.working,
        "total_bytes": {batch: fixed + batch * each for batch in batches},
        "largest_batch": largest_batch(memory, fixed, each),
    }


class Bytes(NamedTuple):
    """Of one device."""

    weights: int
    beside: int  # whatever the batch
    states: int  # of a batch
    working: int  # what a step needs for it besides


def count(config: ms.Config, policy: ms.Policy, budget: int, mesh: Any, batch: int) -> Bytes:
    """Bytes of one device of a mesh.

    Where devices share a layer, its two sums over them are counted for all layers at once: XLA adds them up only where
    they are read.

    Args:
      batch: rows, a multiple of the mesh's axis `data`.
    """
    places = ms.shardings(config, policy, mesh)
    states = jax.eval_shape(lambda: fork(ms.init_state(config, policy, budget), batch))
    devices = mesh.shape.get(MODEL, 1)
    working = working_bytes(part_of(config, devices), policy, budget)
    if devices > 1:
        working += 4 * 2 * config.num_layers * config.model_dim
    return Bytes(
        device_bytes(abstract_params(config), places.params),
        BESIDE * config.num_layers,
        device_bytes(states, places.state),
        batch // mesh.shape.get(DATA, 1) * working,
    )


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


# The compilers' count.

# One row alone whose model devices share is left out: XLA for GPUs gathers the whole embedding for it.
MESHES = {
    "data=1,model=1": (1, 8, 64),
    "data=1,model=4": (8, 64),
    "data=4,model=1": (8, 64),
    "data=2,model=2": (8, 64),
}
CASES = tuple(
    Case(target, "step", shape, mesh=mesh, batch=batch, layers=SHAPES[shape].num_layers)
    for shape in ("llama-2-7b", "llama-3-8b")
    for target in MEMORY
    for mesh, batches in MESHES.items()
    for batch in batches
)
MOST = 1.1  # of the compilers' count


def check(cases: Sequence[Case], console: Console) -> list[dict[str, Any]]:
    """For every case, the compiler's bytes of one device beside ours.

    Returns:
      Rows; `compiled` is None where the compiler refuses the case for its size; `holds`: whether ours are right.
    """
    found = []
    for case in cases:
        say(console, f"compiling {case.shape} for {case.target}, {case.mesh}, batch {case.batch}")
        mesh = ms.parse_mesh(case.mesh, target_devices(case.target))
        ours = sum(count(case.config, ms.parse_policy(case.policy), case.budget, mesh, case.batch))
        compiled = _compiled(case)
        if compiled is None:
            holds = ours > MEMORY[case.target]
        else:
            holds = compiled <= ours <= MOST * compiled
        found.append({**dataclasses.asdict(case), "ours": ours, "compiled": compiled, "holds": holds})
    return found


def _compiled(case: Case) -> int | None:
    try:
        return compile_case(case).total
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None


def tables(rows: Sequence[dict[str, Any]], checked: Sequence[dict[str, Any]]) -> list[Table]:
    """What one device holds, and the compilers' count, for reading."""
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
    shown = Table("model", "target", "mesh", title="a decoding step: the compiler's count and ours, of one device")
    for title in ("policy", "budget", "batch", "compiler's", "ours", "more"):
        shown.add_column(title, justify="right", no_wrap=True)
    for row in checked:
        last = ["does not fit", spell_bytes(row["ours"]), "" if row["holds"] else "!"]
        if row["compiled"] is not None:
            more = f"{100 * (row['ours'] / row['compiled'] - 1):.2f} %" + ("" if row["holds"] else " !")
            last = [spell_bytes(row["compiled"]), spell_bytes(row["ours"]), more]
        names = ("shape", "target", "mesh", "policy", "budget", "batch")
        shown.add_row(*(str(row[name]) for name in names), *last)
    shown.caption = "!: ours must be at least the compiler's and at most 10 % more"
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
    checking: Annotated[
        bool, typer.Option("--check", help="Also compare with the compilers of a TPU and a GPU.")
    ] = False,
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
    for target in MEMORY if checking else ():
        target_devices(target)  # refuses before work
    rows = run(settings)
    checked = check(CASES, Console(stderr=True)) if checking else []
    write_result(out, NAME, settings, {"rows": rows, "checked": checked})
    show(*tables(rows, checked))
    wrong = [row for row in checked if not row["holds"]]
    if wrong:
        one = wrong[0]
        what = f"{one['shape']} for {one['target']}, {one['mesh']}, batch {one['batch']}"
        counts = f"the compiler counts {one['compiled'] or 'too many'} bytes, we {one['ours']}"
        typer.echo(f"{len(wrong)} counts are wrong, of them that of {what}: {counts}", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
