"""How long a user waits: from `msrnn generate` to its first token, cold and warm, and for the imports.

python -m experiments.first_token checkpoints/smollm2-135m

Cold is the first run on a machine: an empty folder for compiled programs, which the run fills. Warm is every run
after that. Everything takes turns in one run; medians are quoted, and the ratio of imports is taken within a turn.
"""

import dataclasses
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from experiments.common.origin import check_out, write_result
from msrnn_jax.cli.errors import plain_errors
from msrnn_jax.cli.usage import Command

IMPORTS = {
    "flax.nnx": "import flax.nnx",
    "msrnn_jax": "import msrnn_jax",
    "msrnn_jax, and a first use": "import msrnn_jax; msrnn_jax.step",  # which is what imports JAX and Flax
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is waited for."""

    checkpoint: str
    prompt: str
    policy: str
    budget: int
    turns: int


def run(settings: Settings, console: Console) -> dict[str, Any]:
    """Seconds of every turn, by what was waited for."""
    imports: dict[str, list[float]] = {name: [] for name in IMPORTS}
    waits: dict[str, list[float]] = {"cold": [], "warm": []}
    import_seconds("import flax.nnx")  # reads the files of all packages from disk
    with console.status("running") as status:
        for turn in range(settings.turns):
            status.update(f"turn {turn + 1} of {settings.turns}")
            for name, code in IMPORTS.items():
                imports[name].append(import_seconds(code))
            with tempfile.TemporaryDirectory(prefix="msrnn-cache-") as cache:
                for name, seconds in waits.items():
                    seconds.append(first_token_seconds(settings, cache))
                    console.print(f"turn {turn + 1}: {name} {seconds[-1]:.2f} s", highlight=False)
    return {"import_seconds": imports, "first_token_seconds": waits}


def import_seconds(code: str) -> float:
    """Of an import in a fresh interpreter, without the interpreter's own start."""
    timed = f"import time; start = time.perf_counter(); {code}; print(time.perf_counter() - start)"
    result = subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True)
    return float(result.stdout)


def first_token_seconds(settings: Settings, cache: str) -> float:
    """From the start of the process to the first byte of the answer.

    Raises:
      ValueError: where the command fails, with what it said.
    """
    command = [
        sys.executable,
        "-m",
        "msrnn_jax",
        "generate",
        settings.checkpoint,
        "--chat",
        "--max-new-tokens",
        "2",
    ]
    command += ["--prompt", settings.prompt, "--policy", settings.policy, "--budget", str(settings.budget)]
    others = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    with subprocess.Popen(
        command, env={**others, "MSRNN_CACHE": cache}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        start = time.perf_counter()
        first = os.read(process.stdout.fileno(), 1)
        seconds = time.perf_counter() - start
        _, error = process.communicate()
    if process.returncode or not first:
        raise ValueError(error.decode().strip().removeprefix("error: ") or "msrnn generate wrote nothing")
    return seconds


def table(result: dict[str, Any]) -> Table:
    """Medians, and the imports over that of flax.nnx."""
    imports, waits = result["import_seconds"], result["first_token_seconds"]
    made = Table("waiting for", "seconds", "x flax.nnx")
    for name, seconds in imports.items():
        ratios = [mine / theirs for mine, theirs in zip(seconds, imports["flax.nnx"], strict=True)]
        made.add_row(f"import {name}", f"{statistics.median(seconds):.2f}", f"{statistics.median(ratios):.2f}")
    for name, seconds in waits.items():
        made.add_row(f"first token, {name}", f"{statistics.median(seconds):.1f}", "")
    return made


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=Command, help=__doc__)
@plain_errors
def main(
    checkpoint: Annotated[str, typer.Argument(help="Folder made by `msrnn convert`.", metavar="CKPT")],
    prompt: Annotated[str, typer.Option(help="What is asked.")] = "What is the sea?",
    policy: Annotated[str, typer.Option(help="As in msrnn generate.")] = "tova",
    budget: Annotated[int, typer.Option(help="As in msrnn generate.")] = 256,
    turns: Annotated[int, typer.Option(help="How often everything is run.", min=1)] = 3,
    out: Annotated[pathlib.Path, typer.Option(help="JSON to write.")] = pathlib.Path("results/first_token.json"),
) -> None:
    check_out(out)
    settings = Settings(checkpoint, prompt, policy, budget, turns)
    result = run(settings, Console(stderr=True))
    write_result(out, "first_token", settings, result)
    Console().print(table(result))
    typer.echo(f"wrote {out}")


if __name__ == "__main__":
    app()
