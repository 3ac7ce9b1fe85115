"""`msrnn info`: what a checkpoint is, and how many rows of state fit beside it."""

import json
from typing import Annotated, Any

import typer

from msrnn_jax.cli.errors import plain_errors
from msrnn_jax.cli.loading import read_policy
from msrnn_jax.cli.options import Checkpoint, Dtype, Json, PolicyTexts, budgets_option


@plain_errors
def info(
    checkpoint: Checkpoint,
    policy: PolicyTexts = None,
    budget: Annotated[
        list[int] | None, budgets_option("Repeat it. Default: 64 to 2048. full holds the context length.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory to fill, such as 24GiB or 512MB. Default: the device's, or the RAM.")
    ] = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Shows what a checkpoint is, the size of its states, and the largest batch.

    Example: msrnn info checkpoints/smollm2-135m --policy tova --policy h2o --budget 256 --memory 24GiB
    """
    from msrnn_jax.checkpoint.info import BUDGETS, POLICIES, checkpoint_info
    from msrnn_jax.checkpoint.layout import read_config
    from msrnn_jax.devices.memory import total_memory
    from msrnn_jax.io.units import parse_bytes

    room, whose = total_memory() if memory is None else (parse_bytes("--memory", memory), "as asked for")
    config = read_config(checkpoint, dtype=dtype)
    policies = [read_policy(text, config) for text in policy or POLICIES]
    facts = checkpoint_info(checkpoint, room, policies=policies, budgets=budget or BUDGETS, dtype=dtype)
    if as_json:
        typer.echo(json.dumps({**facts, "memory": whose}))
    else:
        _show(facts, whose)


def _show(facts: dict[str, Any], whose: str) -> None:
    from rich.console import Console, Group
    from rich.padding import Padding
    from rich.text import Text

    from msrnn_jax.io.units import spell_bytes

    rope, rest = facts["config"]["rope"], {name: value for name, value in facts["config"].items() if name != "rope"}
    settings = {**rest, "rope": ", ".join(f"{name} {value}" for name, value in rope.items())}
    memory = f"{spell_bytes(facts['memory_bytes'])} ({whose})"
    weights = f"{spell_bytes(facts['weight_bytes'])} in {facts['dtype']}"
    sections = {
        facts["checkpoint"]: _pairs(settings),
        "Parameters": _parameters(facts["parameters"]),
        f"States in {facts['dtype']}, and how many rows fit into {memory} beside weights of {weights}": _states(facts),
        "Tokenizer": _pairs(_tokenizer(facts["tokenizer"])),
        "Source": _pairs(facts["source"] if isinstance(facts["source"], dict) else {"": facts["source"] or "unknown"}),
    }
    shown = [Group(Text(title, "bold"), Padding(body, (0, 0, 1, 2))) for title, body in sections.items()]
    Console().print(*shown, sep="")


def _parameters(rows: list[dict[str, Any]]) -> Any:
    from msrnn_jax.io.units import spell_bytes

    table = _table("part", "count", *rows[0]["bytes"], left=1)
    for row in rows:
        table.add_row(row["part"], f"{row['count']:,}", *map(spell_bytes, row["bytes"].values()))
    return table


def _states(facts: dict[str, Any]) -> Any:
    from msrnn_jax.io.units import spell_bytes

    table = _table("policy", "budget", "slots", "state of a row", "at work besides", "largest batch", left=1)
    for row in facts["states"]:
        sizes = (spell_bytes(row[name]) for name in ("state_bytes", "working_bytes"))
        slots = row["slots"] if isinstance(row["slots"], int) else max(row["slots"])
        table.add_row(row["policy"], f"{row['budget']:,}", f"{slots:,}", *sizes, f"{row['largest_batch']:,}")
    return table


def _tokenizer(facts: dict[str, Any] | None) -> dict[str, Any]:
    if facts is None:
        return {"": "none: converted without a tokenizer"}

    def spell(tokens: list[dict[str, Any]]) -> str:
        return ", ".join(f"{token['text']} ({token['id']})" for token in tokens) or "none"

    return {
        "vocabulary": f"{facts['vocabulary']:,} tokens",
        "bos": spell([facts["bos"]] if facts["bos"] else []),
        "stop": spell(facts["stop"]),
        "chat template": "yes" if facts["chat_template"] else "no",
    }


def _table(*columns: str, left: int) -> Any:
    """So many columns of words on the left, then numbers on the right."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        made.add_column(column, justify="left" if number < left else "right")
    return made


def _pairs(values: dict[str, Any]) -> Any:
    """Names and what they are, one below the other; a mapping in it as `name: value` lines."""
    from rich.table import Table
    from rich.text import Text

    from msrnn_jax.text.display import visible

    table = Table.grid(padding=(0, 2))
    for name, value in values.items():
        lines = [f"{key}: {item}" for key, item in value.items()] if isinstance(value, dict) else [str(value)]
        table.add_row(Text(visible(name), "dim"), Text("\n".join(map(visible, lines)), overflow="fold"))
    return table
