"""What the machine can do with this model: bytes per second of one row, operations per second of many."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

import msrnn_jax as ms
from experiments.throughput.settings import Settings
from experiments.throughput.timing import Bench, Row, Series, compiled, take_turns
from msrnn_jax.model.layers import multiply

PASSES = 4  # over all layers in a call


def run(settings: Settings, bench: Bench) -> dict[str, Any]:
    """Times the products of the model's MLPs, layer after layer so that no weight stays in a cache."""
    rows = []
    for dtype in settings.dtypes:
        series = [_series(bench, dtype, count) for count in settings.roofline.rows]
        rows += [_rates(row) for row in take_turns(series, settings.turns, bench.report)]
    return {"rows": rows}


def mlps(params: ms.Params, x: Float[Array, "R D"]) -> Float[Array, "R D"]:
    """The products of all MLPs, each fed by the one before."""

    def product(x: Array, weight: Array) -> Array:
        return multiply(x, weight).astype(x.dtype)

    for layer in params.layers:
        x = product(product(x, layer.gate) + product(x, layer.up), layer.down)
    return x


def _series(bench: Bench, dtype: str, count: int) -> Series:
    config, params = bench.model(dtype)
    x = jnp.ones((count, config.model_dim), dtype)
    program, seconds = compiled(mlps, params, x)

    def call() -> None:
        for _ in range(PASSES):
            result = program(params, x)
        jax.block_until_ready(result)

    weights = 3 * config.num_layers * config.model_dim * config.mlp_dim
    facts = {
        "dtype": dtype,
        "rows": count,
        "compile_seconds": seconds,
        "bytes": PASSES * weights * jnp.dtype(dtype).itemsize,  # of weights; the rows are small beside them
        "operations": PASSES * 2 * weights * count,
    }
    return Series(f"{count} rows", call, PASSES * count, facts)


def _rates(row: Row) -> Row:
    per_second = row["tokens_per_second"] / row["tokens"]
    return {
        **row,
        "bytes_per_second": row["bytes"] * per_second,
        "operations_per_second": row["operations"] * per_second,
    }


def shares(result: dict[str, Any]) -> list[Row]:
    """How much of what the products alone reach, at as many rows, the other sections' series make of it.

    Counted are the products with weights and, where a text is read, those of attention with all slots; norms, softmax
    and what a policy does are what is missing to 1.
    """
    speeds = {(row["dtype"], row["rows"]): row["operations_per_second"] for row in result["roofline"]["rows"]}
    series = [(row, row["batch"], 0) for row in result.get("decode", {}).get("rows", ()) if "policy" in row]
    for row in result.get("extend", {}).get("whole", ()):
        if "chunk" in row:
            series.append((row, row["chunk"], row["budget"] + 1 + row["chunk"]))
    config = result["config"]
    slot = 2 * config["num_layers"] * config["num_heads"] * config["head_dim"]  # of key and value, for all query heads

    def share(row: Row, rows: int, slots: int) -> float:
        operations = 2 * (result["weights_per_token"] + slots * slot)
        return row["tokens_per_second"] * operations / speeds[row["dtype"], rows]

    return [
        {"dtype": row["dtype"], "series": row["series"], "rows": rows, "share": share(row, rows, slots)}
        for row, rows, slots in series
        if (row["dtype"], rows) in speeds
    ]


def weights_per_token(config: ms.Config) -> int:
    """How many weights every token is multiplied with: all but norms, biases and the embedding it is looked up in."""
    heads = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim
    layer = config.model_dim * (heads + 3 * config.mlp_dim)
    return config.num_layers * layer + config.vocab_size * config.model_dim
