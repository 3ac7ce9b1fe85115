"""The `msrnn` command: generate, perplexity, convert."""

import json
import sys
from typing import Annotated

import typer

from msrnn_jax.command import plain_errors
from msrnn_jax.convert.cli import command as convert  # pyright: ignore[reportMissingImports], see pyproject.toml

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="LLaMA as a multi-state RNN: generation and perplexity with a state of fixed size.",
)

Checkpoint = Annotated[str, typer.Argument(help="Folder made by `python -m convert`.", metavar="CKPT")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line, and nothing else.")]
Positions = Annotated[str, typer.Option(help="How keys are rotated: absolute, cache (StreamingLLM) or gap.")]
Dtype = Annotated[str | None, typer.Option(help="Cast the weights: bfloat16, float16 or float32.")]


@app.command()
@plain_errors()
def generate(
    checkpoint: Checkpoint,
    prompt: Annotated[list[str] | None, typer.Option(help="What to continue; repeat it for a batch.")] = None,
    policy: Annotated[str, typer.Option(help="Such as tova, h2o:recent=32, window:sinks=4, full.")] = "tova",
    budget: Annotated[int, typer.Option(help="Multi-state size: tokens each layer remembers.")] = 256,
    max_new_tokens: Annotated[int, typer.Option(help="The most tokens a continuation gets.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the draws at a temperature above 0.")] = 0,
    chat: Annotated[bool, typer.Option(help="Put the prompt into the model's chat template.")] = False,
    mode: Annotated[str, typer.Option(help="How the prompt is read: stepwise or oneshot.")] = "stepwise",
    positions: Positions = "absolute",
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Continues prompts.

    Example: msrnn generate checkpoints/smollm2-135m --chat --prompt "Tell me about the sea." --budget 64
    """
    import jax
    import numpy as np

    import msrnn_jax as ms

    if not prompt:
        raise ValueError("--prompt is missing; give at least one")
    chosen = ms.parse_policy(policy)
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}; it must be at least 0")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; it must be from 0 to {2**32 - 1}")
    sampler = ms.Temperature(temperature) if temperature else ms.Greedy()
    tokenizer = ms.load_tokenizer(checkpoint)
    encode = (lambda text: tokenizer.chat([{"role": "user", "content": text}])) if chat else tokenizer.encode
    rows = [encode(text) for text in prompt]
    for text, row in zip(prompt, rows, strict=True):
        if not row:
            raise ValueError(f"prompt {text!r} is empty; it must have at least one token")
    config, params = ms.load(checkpoint, dtype=dtype)
    padded = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    tokens, lengths, _ = ms.generate(
        config,
        chosen,
        params,
        padded,
        [len(row) for row in rows],
        budget=budget,
        max_new_tokens=max_new_tokens,
        sampler=sampler,
        key=jax.random.key(seed),
        stop=tokenizer.stop,
        mode=mode,
        positions=positions,
    )
    for text, row, length in zip(prompt, np.asarray(tokens), np.asarray(lengths), strict=True):
        answer = tokenizer.decode(row[:length])
        settings = {"policy": str(chosen), "budget": budget, "mode": mode, "sampler": repr(sampler), "seed": seed}
        result = {"prompt": text, "text": answer, "tokens": row[:length].tolist(), **settings, "positions": positions}
        typer.echo(json.dumps(result) if as_json else (answer if chat else text + answer))


@app.command()
@plain_errors()
def perplexity(
    checkpoint: Checkpoint,
    text: Annotated[list[str] | None, typer.Option(help="UTF-8 file; repeat it. Default: Python's help.")] = None,
    policy: Annotated[list[str] | None, typer.Option(help="Repeat it. Default: tova.")] = None,
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


app.command("convert")(convert)


def main() -> None:
    """Entry point of the `msrnn` command."""
    sys.exit(app())


if __name__ == "__main__":
    main()
