"""`msrnn generate`: continues prompts."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from msrnn_jax.cli.errors import plain_errors
from msrnn_jax.cli.loading import open_model, read_policy
from msrnn_jax.cli.options import (
    Budget,
    Checkpoint,
    Dtype,
    Json,
    MinP,
    Mode,
    PolicyText,
    Positions,
    Seed,
    Temperature,
    TopK,
    TopP,
)
from msrnn_jax.cli.waiting import after_waiting, waiting

if TYPE_CHECKING:
    from msrnn_jax.generation.streaming import TextStream


@plain_errors
def generate(
    checkpoint: Checkpoint,
    prompt: Annotated[list[str] | None, typer.Option(help="What to continue; repeat it for a batch.")] = None,
    prompt_file: Annotated[
        list[str] | None, typer.Option(help="A file of UTF-8 text to continue, - for standard input; repeat it.")
    ] = None,
    policy: PolicyText = "tova",
    budget: Budget = 256,
    max_new_tokens: Annotated[int, typer.Option(help="The most tokens a continuation gets.")] = 128,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    seed: Seed = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="Stop before this text, beside the model's stop tokens; repeat it.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    mode: Mode = "stepwise",
    prompt_policy: Annotated[
        str | None, typer.Option(help="Policy while the prompt is read; --policy then goes on with what is left.")
    ] = None,
    positions: Positions = "absolute",
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Continues prompts, shown as they are written; several are written at once and shown when all are done.

    The same seed gives a prompt the same text alone and among others.

    Example: msrnn generate checkpoints/smollm2-135m --chat --prompt "Tell me about the sea." --budget 64
    """
    from msrnn_jax.text.documents import read_text

    prompts = [*(prompt or []), *(read_text(path).removesuffix("\n") for path in prompt_file or [])]
    if not prompts:
        raise ValueError("--prompt is missing; give at least one, or --prompt-file")
    from msrnn_jax.generation.sampling import make_sampler

    sampler = make_sampler(temperature, top_k, top_p, min_p)
    import jax

    from msrnn_jax.checkpoint.layout import read_config
    from msrnn_jax.generation.streaming import check_stop_strings, stream_text

    check_stop_strings(stop or [])
    config = read_config(checkpoint, dtype=dtype)
    chosen = read_policy(policy, config)
    reader = None if prompt_policy is None else read_policy(prompt_policy, config)
    with waiting("loading the model and reading the prompt"):
        model = open_model(checkpoint, dtype)
        tokenizer = model.tokenizer
        rows = [tokenizer.chat([{"role": "user", "content": text}]) if chat else text for text in prompts]
        writer = stream_text(
            model.config,
            chosen,
            model.params,
            tokenizer,
            rows,
            budget=budget,
            max_new_tokens=max_new_tokens,
            sampler=sampler,
            key=jax.random.key(seed),
            stop_strings=stop or [],
            mode=mode,
            prompt_policy=reader,
            positions=positions,
        )
    if not as_json:
        return _show(prompts, writer, with_prompt=not chat)
    settings = {"policy": str(chosen), "budget": budget, "mode": mode, "positions": positions, "sampler": repr(sampler)}
    settings |= {} if reader is None else {"prompt_policy": str(reader)}
    settings |= {"seed": seed, "max_new_tokens": max_new_tokens, "stop": stop or [], "dtype": model.config.dtype}
    _write_all(writer)
    for text, row in zip(prompts, writer.rows, strict=True):
        result = {"prompt": text, "text": row.text, "tokens": row.tokens, "finish": row.finish, **settings}
        typer.echo(json.dumps(result))


def _show(prompts: list[str], writer: "TextStream", with_prompt: bool) -> None:
    if len(prompts) == 1:
        before = prompts[0] if with_prompt else ""
        for (piece,) in after_waiting(writer, "writing"):
            sys.stdout.write(before + piece)
            sys.stdout.flush()
            before = ""
        return typer.echo()
    _write_all(writer)
    for text, row in zip(prompts, writer.rows, strict=True):
        typer.echo((text if with_prompt else "") + row.text)


def _write_all(writer: "TextStream") -> None:
    from rich.console import Console

    with Console(stderr=True).status("writing") as status:
        for _ in writer:
            status.update(f"writing: {sum(len(row.tokens) for row in writer.rows)} tokens")
