"""`msrnn trace`: which tokens every layer still holds, and when each was freed."""

import json
from typing import Annotated

import typer

from msrnn_jax.cli.errors import plain_errors
from msrnn_jax.cli.loading import read_policy
from msrnn_jax.cli.options import Checkpoint, Dtype, Json, Mode, PolicyText, Positions


@plain_errors
def trace(
    checkpoint: Checkpoint,
    prompt: Annotated[str | None, typer.Option(help="What to read.")] = None,
    text: Annotated[str | None, typer.Option(help="UTF-8 file to read instead, - for standard input.")] = None,
    policy: PolicyText = "tova",
    budget: Annotated[
        int | None, typer.Option(help="Tokens each layer remembers. Default: 64; full holds all.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Read at most this many tokens of the text.")] = 512,
    max_new_tokens: Annotated[
        int, typer.Option(help="Also write this many tokens after the text, greedily, and trace them.")
    ] = 0,
    chat: Annotated[bool, typer.Option("--chat", help="Put the text into the model's chat template.")] = False,
    layer: Annotated[int | None, typer.Option(help="Show the tokens of this layer; by default all layers.")] = None,
    html: Annotated[str | None, typer.Option(help="Write one self-contained page here.")] = None,
    mode: Mode = "stepwise",
    positions: Positions = "absolute",
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Shows which tokens every layer still holds, and when each was freed.

    Example: msrnn trace checkpoints/smollm2-135m --text book.txt --policy tova --budget 32 --html trace.html
    """
    import pathlib

    from rich.console import Console

    from msrnn_jax.checkpoint.layout import read_config
    from msrnn_jax.checkpoint.load import load
    from msrnn_jax.checkpoint.tokenizer import load_tokenizer
    from msrnn_jax.io.atomic import check_writable
    from msrnn_jax.io.environment import keep_compilations
    from msrnn_jax.text.documents import read_text
    from msrnn_jax.tracing.page import write_page
    from msrnn_jax.tracing.terminal import show
    from msrnn_jax.tracing.trace import make_settings, read_prompt, trace_prompt

    if (prompt is None) == (text is None):
        raise ValueError("give either --prompt or --text" + ("" if prompt is None else ", not both"))
    if html is not None:
        check_writable("--html", html)
    config = read_config(checkpoint, dtype=dtype)
    if layer is not None and not 0 <= layer < config.num_layers:
        raise ValueError(f"--layer is {layer}; it must be from 0 to {config.num_layers - 1}")
    chosen, tokenizer = read_policy(policy, config), load_tokenizer(checkpoint)
    content = prompt if text is None else read_text(text)
    assert content is not None
    given = read_prompt(tokenizer, content, chat=chat, max_tokens=max_tokens)
    read = len(given.tokens)
    settings, empty = make_settings(config, chosen, budget, mode, positions, max_new_tokens, read)
    keep_compilations()
    console = Console(stderr=True)
    if read < given.uncut:
        console.print(f"the text has {given.uncut} tokens; the first {read} are read (--max-tokens)", highlight=False)
    with console.status("reading the weights") as status:
        config, params = load(checkpoint, dtype=dtype)
        record = trace_prompt(config, params, tokenizer, given, settings, empty, status.update)
    if html is not None:
        write_page(html, record, pathlib.Path(checkpoint).absolute().name)
    if as_json:
        typer.echo(json.dumps({"checkpoint": checkpoint, **record}))
    else:
        show(Console(), record, layer)
