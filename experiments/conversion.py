"""Memory and time of conversion: a large checkpoint of random weights in, as it is and in another dtype, and out again.

python -m experiments.conversion

The checkpoint, a LLaMA in bfloat16 in shards as on the Hugging Face hub, is made in a temporary folder first.
Every conversion is a process of its own; its peak is the resident memory that the operating system counted
(`ru_maxrss`).
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

import msrnn_jax as ms
from convert.huggingface.export_config import write_config
from convert.huggingface.reader import NAMES
from convert.huggingface.safetensors import Tensor, open_file, write_shards
from convert.tensors import name_tree, stored_shape
from experiments.common.origin import check_out, write_result
from msrnn_jax.cli.errors import plain_errors
from msrnn_jax.cli.usage import Command
from msrnn_jax.io.folders import check_space
from msrnn_jax.io.units import GIB, tree_bytes
from msrnn_jax.params import abstract_params, param_axes

FIXED = 500 * 10**6  # bytes that a conversion may take beside twice the largest tensor
# On Linux a process counts from the start what the one that made it holds, so that one has to be small.
LAUNCHER = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"peak_bytes": peak, "seconds": seconds}))
sys.exit(done.returncode)
"""
BLOCK = 2**24  # numbers that are made at once
SHARD = 10**9  # bytes


@dataclasses.dataclass(frozen=True)
class Settings:
    """The model that is converted: as many layers as make it large enough."""

    gib: float
    vocab_size: int
    model_dim: int
    seed: int

    def config(self) -> ms.Config:
        base = ms.Config(
            vocab_size=self.vocab_size,
            model_dim=self.model_dim,
            num_layers=1,
            num_heads=self.model_dim // 64,
            num_kv_heads=self.model_dim // 256,
            head_dim=64,
            mlp_dim=4 * self.model_dim,
            dtype="bfloat16",
        )
        one, two = (tree_bytes(abstract_params(base.replace(num_layers=number))) for number in (1, 2))
        return base.replace(num_layers=1 + max(1, math.ceil((self.gib * GIB - one) / (two - one))))


def make_source(settings: Settings, folder: pathlib.Path) -> None:
    """A Hugging Face folder of random weights, in shards, written block by block."""
    config, dice = settings.config(), np.random.default_rng(settings.seed)
    dtype = jnp.dtype(config.dtype)
    shapes = [stored_shape(config, axes) for axes in jax.tree.leaves(param_axes(config))]
    names = jax.tree.leaves(name_tree(config, NAMES))
    tensors = {name: Tensor(dtype, shape) for name, shape in zip(names, shapes, strict=True)}
    folder.mkdir()
    write_shards(folder, tensors, SHARD, lambda name: _random_blocks(tensors[name], dice))
    (folder / "config.json").write_text(json.dumps(write_config(config)))


def _random_blocks(tensor: Tensor, dice: np.random.Generator) -> Iterator[np.ndarray]:
    """Numbers of either sign from 2^-7 to 2^-3, as the bits of bfloat16."""
    left = math.prod(tensor.shape)
    while left:
        count = min(left, BLOCK)
        yield dice.integers(0, 2**16, count, np.uint16) & np.uint16(0x81FF) | np.uint16(0x3C00)
        left -= count


def run(settings: Settings, folder: pathlib.Path, console: Console) -> dict[str, Any]:
    """Peak bytes and seconds of every conversion."""
    config = settings.config()
    size = tree_bytes(abstract_params(config))
    largest = max(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
    check_space(folder, 5 * size)
    console.print(f"making a checkpoint of {size / GIB:.1f} GiB, {config.num_layers} layers", highlight=False)
    make_source(settings, folder / "source")
    works = {
        "in, bfloat16": ("bfloat16", ["source", "ours"]),
        "in, --dtype float32": ("float32", ["source", "wide", "--dtype", "float32"]),
        "out": ("bfloat16", ["export", "ours", "back"]),
    }
    found = {}
    for name, (dtype, arguments) in works.items():
        bound = 2 * largest * jnp.dtype(dtype).itemsize + FIXED
        found[name] = {**measure(arguments, folder), "largest_tensor_bytes": (bound - FIXED) // 2, "bound_bytes": bound}
        console.print(f"{name}: {found[name]['peak_bytes'] / 1e6:,.0f} MB", highlight=False)
    same = _bits(folder / "source") == _bits(folder / "back")
    return {"model": config.to_dict(), "weights_bytes": size, "conversions": found, "same_bits_there_and_back": same}


def _bits(folder: pathlib.Path) -> dict[str, str]:
    """A digest of every tensor, whatever file it is in."""
    digests = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in open_file(file).items():
            found = hashlib.sha256(f"{tensor.kind} {tensor.shape}".encode())
            for _, block in tensor.blocks(2):
                found.update(block.view(np.uint16).data)
            digests[name] = found.hexdigest()
    return digests


def measure(arguments: list[str], folder: pathlib.Path) -> dict[str, Any]:
    """Runs `python -m convert` in a folder and asks the operating system what it took.

    Raises:
      ValueError: where the command fails, with what it said.
    """
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parent.parent)}
    command = [sys.executable, "-c", LAUNCHER, sys.executable, "-m", "convert", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"python -m convert {' '.join(arguments)}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def table(result: dict[str, Any]) -> Table:
    """Peaks beside what they may be."""
    made = Table("conversion", "largest tensor, MB", "peak memory, MB", "at most, MB", "seconds")
    for name, found in result["conversions"].items():
        sizes = (found[key] / 1e6 for key in ("largest_tensor_bytes", "peak_bytes", "bound_bytes"))
        made.add_row(name, *(f"{size:,.0f}" for size in sizes), f"{found['seconds']:.0f}")
    return made


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=Command, help=__doc__)
@plain_errors
def main(
    gib: Annotated[float, typer.Option(help="Weights, at least, in GiB.", min=0.001)] = 4.0,
    vocab_size: Annotated[int, typer.Option(help="V, on which the largest tensor depends.", min=1)] = 128256,
    model_dim: Annotated[int, typer.Option(help="D, a multiple of 256.", min=256)] = 2048,
    seed: Annotated[int, typer.Option(help="Dtype of the weights.")] = 0,
    folder: Annotated[pathlib.Path | None, typer.Option(help="Where checkpoints are made for a while.")] = None,
    out: Annotated[pathlib.Path, typer.Option(help="JSON to write.")] = pathlib.Path("results/conversion.json"),
) -> None:
    check_out(out)
    if model_dim % 256:
        raise ValueError(f"--model-dim is {model_dim}; it must be a multiple of 256")
    settings = Settings(gib, vocab_size, model_dim, seed)
    with tempfile.TemporaryDirectory(dir=folder, prefix="msrnn-conversion-") as place:
        result = run(settings, pathlib.Path(place), Console(stderr=True))
    write_result(out, "conversion", settings, result)
    Console().print(table(result))
    typer.echo(f"wrote {out}")


if __name__ == "__main__":
    app()
