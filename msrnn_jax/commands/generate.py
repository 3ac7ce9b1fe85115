"""`msrnn generate`: continues prompts."""

import json
from typing import Annotated

import typer

from msrnn_jax.command import plain_errors
from msrnn_jax.commands.options import Checkpoint, Dtype, Json, Mode, PolicyText, Positions


@plain_errors()
def generate(
    checkpoint: Checkpoint,
    prompt: Annotated[list[str] | None, typer.Option(help="What to continue; repeat it for a batch.")] = None,
    policy: PolicyText = "tova",
    budget: Annotated[int, typer.Option(help="Multi-state size: tokens each layer remembers.")] = 256,
    max_new_tokens: Annotated[int, typer.Option(help="The most tokens a continuation gets.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the draws at a temperature above 0.")] = 0,
    chat: Annotated[bool, typer.Option(help="Put the prompt into the model's chat template.")] = False,
    mode: Mode = "stepwise",
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
    from msrnn_jax.checkpoint import load_config
    from msrnn_jax.commands.policies import read_policy

    if not prompt:
        raise ValueError("--prompt is missing; give at least one")
    chosen = read_policy(policy, load_config(checkpoint, dtype=dtype))
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
