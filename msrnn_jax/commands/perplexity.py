"""`msrnn perplexity`: perplexity of texts for every policy and budget."""

import json
from typing import Annotated

import typer

from msrnn_jax.command import plain_errors
from msrnn_jax.commands.options import Checkpoint, Dtype, Json, PolicyTexts, Positions


@plain_errors()
def perplexity(
    checkpoint: Checkpoint,
    text: Annotated[list[str] | None, typer.Option(help="UTF-8 file; repeat it. Default: Python's help.")] = None,
    policy: PolicyTexts = None,
    budget: Annotated[list[int] | None, typer.Option(help="Repeat it. Default: 256. full holds all.")] = None,
    segment: Annotated[int, typer.Option(help="Tokens per segment; each starts from an empty state.")] = 1024,
    segments: Annotated[int, typer.Option(help="Use the first N segments; 0 uses all.")] = 0,
    batch: Annotated[int, typer.Option(help="Rows (segment, budget) run at once.")] = 4,
    positions: Positions = "absolute",
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Measures perplexity for every policy and budget.

    Example: msrnn perplexity checkpoints/smollm2-135m --text book.txt --policy tova --policy window:sinks=4
    --budget 64 --budget 256 --segments 4
    """
    from rich.console import Console
    from rich.table import Table

    from msrnn_jax.measure import decimals, measure, origin, read_inputs

    if segments < 0:
        raise ValueError(f"segments is {segments}; it must be at least 0")
    inputs = read_inputs(checkpoint, text, segment, segments, dtype)
    about = origin(inputs) if as_json else {}
    console = Console(stderr=True)
    table = Table("policy", "budget", "perplexity", "nats per token", "standard error")
    with console.status("compiling") as status:
        rows = measure(
            inputs, policy or ["tova"], budget or [256], batch=batch, positions=positions, report=status.update
        )
        for row in rows:
            if as_json:
                typer.echo(json.dumps({**row, **about}))
            numbers = (decimals(row[name], places) for name, places in (("perplexity", 2), ("nll", 4), ("stderr", 4)))
            table.add_row(row["policy"], str(row["budget"]), *numbers)
    if not as_json:
        Console().print(table)
        typer.echo(f"{inputs.tokens} tokens predicted in {len(inputs.segments)} segments, text {inputs.text_hash}")
