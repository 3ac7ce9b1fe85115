"""Trains a model through its state, for the policy and the budget that it will run with.

python -m experiments.finetune checkpoints/smollm2-135m --data book.txt --data other.txt --out runs/tova64

Loss of the next token under the policy (--policy full trains with full attention), AdamW on float32 weights. The folder
--out gets losses.jsonl, losses.png and the checkpoint `model`. The same command goes on where it was cut off.

--gate soft --policy learned --distill 1 --segment 2048 trains what to forget, and the model stays as it is. Then --out
gets gate.safetensors, for --policy learned:runs/gate/gate.safetensors of every command.
"""

import pathlib
from typing import Annotated

import typer
from rich.console import Console

from experiments.common.console import say
from experiments.common.options import Checkpoint, command_of, settings_of
from experiments.finetune.run import GATE, MODEL, run
from experiments.finetune.settings import Settings
from msrnn_jax.cli.errors import plain_errors

NAME = "finetune"
PRESETS = {"small": Settings()}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=command_of(PRESETS), help=__doc__)
@plain_errors
def main(
    checkpoint: Checkpoint,
    out: Annotated[pathlib.Path, typer.Option(help="Folder to write, or to go on with.")],
    data: Annotated[
        list[str] | None, typer.Option("--data", help="Files or folders of .txt. Default: Python's help.")
    ] = None,
    policy: Annotated[str | None, typer.Option(help="As in msrnn perplexity; full: no forgetting.")] = None,
    budget: Annotated[int | None, typer.Option(help="Multi-state size.")] = None,
    steps: Annotated[int | None, typer.Option(help="Segments that every row reads.")] = None,
    batch: Annotated[int | None, typer.Option(help="Rows, stretches of text side by side.")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens read from an empty state, in segments.")] = None,
    segment: Annotated[int | None, typer.Option(help="Tokens of a step; gradients end there.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The highest rate, which the warm-up ends at.")] = None,
    warmup: Annotated[int | None, typer.Option(help="Updates of the warm-up.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay of matrices.")] = None,
    clip: Annotated[float | None, typer.Option(help="Largest norm of a gradient.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Steps that make one update.")] = None,
    lora: Annotated[int | None, typer.Option(help="Rank of adapters, which alone are trained; 0: all weights.")] = None,
    lora_weights: Annotated[
        list[str] | None,
        typer.Option("--lora-weight", help="Matrix that gets an adapter; repeat it. Default: all seven."),
    ] = None,
    merge: Annotated[bool | None, typer.Option("--merge", help="Add the adapters into the weights.")] = None,
    distill: Annotated[
        float | None, typer.Option(help="Share of KL from the model as it was, with full attention, in the loss.")
    ] = None,
    gate: Annotated[
        str | None, typer.Option(help="Train a gate, for the policy learned: soft, rank, straight or attention.")
    ] = None,
    gate_width: Annotated[int | None, typer.Option(help="Hidden units of each gate.")] = None,
    gate_hidden: Annotated[
        bool | None, typer.Option("--gate-hidden", help="Let the gate read the layer's input, too.")
    ] = None,
    hinge: Annotated[float | None, typer.Option(help="Weight of the tokens held beyond the budget.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="For rank and straight; lower is nearer to a hard choice.")
    ] = None,
    start: Annotated[str | None, typer.Option(help="A gate to start from.")] = None,
    compute: Annotated[str | None, typer.Option(help="Dtype of the work: bfloat16 or float32.")] = None,
    chunk: Annotated[int | None, typer.Option(help="Tokens that go through a layer together.")] = None,
    keep_every: Annotated[int | None, typer.Option(help="Steps after which all is kept.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the order of the text, and of adapters.")] = None,
) -> None:
    settings = settings_of(
        PRESETS,
        "small",
        checkpoint=checkpoint,
        data=data,
        policy=policy,
        budget=budget,
        steps=steps,
        batch=batch,
        length=length,
        segment=segment,
        learning_rate=learning_rate,
        warmup=warmup,
        weight_decay=weight_decay,
        clip=clip,
        accumulate=accumulate,
        lora=lora,
        lora_weights=lora_weights,
        merge=merge,
        distill=distill,
        gate=gate,
        gate_width=gate_width,
        gate_hidden=gate_hidden,
        hinge=hinge,
        temperature=temperature,
        start=start,
        compute=compute,
        chunk=chunk,
        keep_every=keep_every,
        seed=seed,
    )
    console = Console(stderr=True)
    lines = run(settings, out, console)
    say(console, f"finetune: {len(lines)} steps, loss {lines[0]['loss']:.4f} at first, {lines[-1]['loss']:.4f} at last")
    typer.echo(out / (GATE if settings.gate else MODEL))


if __name__ == "__main__":
    app()
