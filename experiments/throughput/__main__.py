"""What the recurrence costs, against the machine, position, budget and batch, and other ways to the same tokens.

python -m experiments.throughput checkpoints/smollm2-135m

Everything that is compared takes turns in one run, in alternating order; ratios are taken within a turn and
their median is quoted. Compile times are apart. transformers (torch) is timed beside it where installed.
"""

import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from experiments.common.origin import check_out, write_result
from experiments.common.shapes import SHAPES
from experiments.throughput import decode, memory, roofline
from experiments.throughput import policies as each_policy
from experiments.throughput.plot import plot
from experiments.throughput.reading import run_extend, run_prompt
from experiments.throughput.settings import (
    DEFAULT_SECTIONS,
    SECTIONS,
    Decode,
    Extend,
    Memory,
    Policies,
    Prompt,
    Roofline,
    Settings,
    check,
    tokens_needed,
)
from experiments.throughput.tables import tables
from experiments.throughput.timing import Bench, threads
from msrnn_jax.cli.errors import plain_errors
from msrnn_jax.cli.usage import Command

T = TypeVar("T")

RUNS: dict[str, Callable[[Settings, Bench], dict[str, Any]]] = {
    "roofline": roofline.run,
    "decode": decode.run,
    "prompt": run_prompt,
    "extend": run_extend,
    "memory": memory.run,
    "policies": each_policy.run,
}


def run(settings: Settings, console: Console) -> dict[str, Any]:
    """Runs the sections one after the other."""
    section = "all"

    def report(message: str) -> None:
        console.print(f"{section}: {message}", highlight=False, soft_wrap=True)

    bench = Bench(settings, report)
    if "memory" in settings.sections:
        memory.check_memory(settings, bench)
    if tokens_needed(settings):
        bench.tokens(tokens_needed(settings))
    results = {}
    for section in settings.sections:
        results[section] = RUNS[section](settings, bench)
    config = bench.abstract(settings.dtypes[0]).config
    result = {
        "config": config.to_dict(),
        "weights_per_token": roofline.weights_per_token(config),
        "threads": threads(),
        "peers": bench.describe_peers(),
        **bench.origin,
        **results,
    }
    if "roofline" in results:
        results["roofline"]["shares"] = roofline.shares(result)
    return result


WIDTH = 120  # of tables in a file
Counts = list[int] | None
Names = list[str] | None


def option(panel: str, text: str) -> Any:
    """An option shown with the others of its section."""
    return typer.Option(help=text, rich_help_panel=panel)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=Command, help=__doc__)
@plain_errors
def main(
    checkpoint: Annotated[
        str | None, typer.Argument(help="Folder made by `msrnn convert`; or --shape.", metavar="CKPT")
    ] = None,
    shape: Annotated[str | None, typer.Option(help=f"Instead of a checkpoint: {', '.join(SHAPES)}.")] = None,
    random: Annotated[bool, typer.Option("--random", help="Draw the weights of the shape.")] = False,
    section: Annotated[
        Names, typer.Option(help=f"Repeat it: {', '.join(SECTIONS)}. Default: all but policies.")
    ] = None,
    dtype: Annotated[
        Names, typer.Option(help="Dtype of weights; repeat it. Default: float32 and bfloat16, a shape's own.")
    ] = None,
    policy: Annotated[
        str, typer.Option(help="Policy of all states but the variations of extend and policies.")
    ] = Settings.policy,
    text: Annotated[Names, typer.Option(help="UTF-8 file; repeat it. Default: Python's help.")] = None,
    turns: Annotated[int, typer.Option(help="Turns of roofline and decode.")] = Settings.turns,
    slow_turns: Annotated[int, typer.Option(help="Turns of prompt, extend and policies.")] = Settings.slow_turns,
    peers: Annotated[bool, typer.Option(help="Time transformers too, where installed.")] = Settings.peers,
    rows: Annotated[Counts, option("roofline", "Rows at once; repeat it. Default: 1 to 512.")] = None,
    decode_budget: Annotated[int, option("decode", "Budget where it is not varied.")] = Decode.budget,
    decode_budgets: Annotated[Counts, option("decode", "Repeat it. Default: 64 to 1,024.")] = None,
    batch: Annotated[Counts, option("decode", "Repeat it. Default: 1, 8, 32.")] = None,
    early: Annotated[int, option("decode", "Position of a token.")] = Decode.early,
    late: Annotated[int, option("decode", "Position of another.")] = Decode.late,
    decode_prompt: Annotated[int, option("decode", "Tokens read before.")] = Decode.prompt,
    new_tokens: Annotated[int, option("decode", "Steps in a call, of memory and policies too.")] = Decode.new_tokens,
    prompt_length: Annotated[int, option("prompt", "Tokens of the prompt.")] = Prompt.length,
    prompt_budget: Annotated[int, option("prompt", "Budget.")] = Prompt.budget,
    tokens: Annotated[int, option("extend", "Tokens of the whole text.")] = Extend.tokens,
    budget: Annotated[int, option("extend", "Budget where it is not varied.")] = Extend.budget,
    chunk: Annotated[int, option("extend", "Chunk where it is not varied.")] = Extend.chunk,
    chunks: Annotated[Counts, option("extend", "Repeat it. Default: 64 to 512.")] = None,
    budgets: Annotated[Counts, option("extend", "Repeat it. Default: 64 to 2,048.")] = None,
    policies: Annotated[Names, option("extend", "Repeat it. Default: TOVA, H2O, Window+4.")] = None,
    grid_tokens: Annotated[int, option("extend", "Tokens that a variation reads.")] = Extend.grid_tokens,
    stretch: Annotated[int, option("extend", "Tokens that single steps read.")] = Extend.stretch,
    long: Annotated[int, option("extend", "Tokens of a program compiled for its memory.")] = Extend.long,
    memory_budgets: Annotated[Counts, option("memory", "Repeat it. Default: 256 to 2,048.")] = None,
    memory_full: Annotated[int, option("memory", "Tokens that full attention holds.")] = Memory.full,
    memory_gib: Annotated[float | None, option("memory", "Default: the accelerator's; 32 on a CPU.")] = None,
    full_batch: Annotated[
        int | None, option("memory", "Instead: what so many rows of full attention just fill.")
    ] = None,
    check_batch: Annotated[int, option("memory", "Rows of the step XLA's count is taken of.")] = Memory.check_batch,
    largest: Annotated[
        bool | None, option("memory", "Decode at the largest batch. Default: on accelerators only.")
    ] = None,
    compared: Annotated[
        Names, option("policies", "Repeat it. Default: all that forget, at each token and not.")
    ] = None,
    compared_batch: Annotated[Counts, option("policies", "Repeat it. Default: 1, 8.")] = None,
    out: Annotated[pathlib.Path, typer.Option(help="JSON to write; the plot goes beside it.")] = pathlib.Path(
        "results/throughput.json"
    ),
) -> None:
    check_out(out)
    own = (SHAPES[shape].dtype,) if shape in SHAPES else Settings.dtypes
    settings = Settings(
        checkpoint=checkpoint,
        shape=shape,
        sections=_distinct(section or DEFAULT_SECTIONS),
        dtypes=_distinct(dtype or own),
        policy=policy,
        texts=tuple(text or ()),
        turns=turns,
        slow_turns=slow_turns,
        peers=peers,
        roofline=Roofline(_distinct(rows or Roofline.rows)),
        decode=Decode(
            budget=decode_budget,
            budgets=_distinct(decode_budgets or Decode.budgets),
            batches=_distinct(batch or Decode.batches),
            early=early,
            late=late,
            prompt=decode_prompt,
            new_tokens=new_tokens,
        ),
        prompt=Prompt(prompt_length, prompt_budget),
        extend=Extend(
            tokens=tokens,
            budget=budget,
            chunk=chunk,
            chunks=_distinct(chunks or Extend.chunks),
            budgets=_distinct(budgets or Extend.budgets),
            policies=_distinct(policies or Extend.policies),
            grid_tokens=grid_tokens,
            stretch=stretch,
            long=long,
        ),
        memory=Memory(
            budgets=_distinct(memory_budgets or Memory.budgets),
            full=memory_full,
            gib=memory_gib,
            full_batch=full_batch,
            check_batch=check_batch,
            largest=largest,
        ),
        policies=Policies(
            compared=_distinct(compared or Policies.compared),
            batches=_distinct(compared_batch or Policies.batches),
        ),
    )
    check(settings, random)
    result = run(settings, Console(stderr=True))
    write_result(out, "throughput", settings, result)
    written = json.loads(out.read_text(encoding="utf-8"))
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    for table in tables(written):
        console.print(table)
    if result["peers"]["skipped"]:
        typer.echo(f"transformers was not timed: {result['peers']['skipped']}")
    typer.echo(" and ".join(f"{path}" for path in (f"wrote {out}", plot(out)) if path is not None))


def _distinct(values: Iterable[T]) -> tuple[T, ...]:
    """Each once, in order: what is asked for twice is timed once."""
    return tuple(dict.fromkeys(values))


if __name__ == "__main__":
    app()
