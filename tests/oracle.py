"""The recurrence written from its definition: numpy float64 and Python lists of remembered tokens.

Nothing here comes from the library; only the names of config fields and weights are shared. Axis letters are
those of the library: D model width, N query heads, K key/value heads, G = N // K, H head width, F mlp width,
V vocabulary, T time. A row is one list of remembered tokens: all K heads of a layer share one where the
policy's scope is the layer, each head has its own where it is the head. What a token is worth to a policy is in
oracle_policies.py.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from oracle_policies import (
    SCORES,
    TALLIES,
    Rule,
    View,
    as_lowest,
    in_pyramid,
    read_policy,
    resolved,
    softmax,
)

if TYPE_CHECKING:
    from msrnn_jax.config import Config
    from msrnn_jax.params import Params


@dataclass
class Memory:
    """One remembered token of one row, with what its row has seen of it."""

    position: int
    key: np.ndarray  # [K, H], unrotated in every position mode: it is rotated anew whenever it is attended to
    value: np.ndarray  # [K, H]
    latest: float = 0.0  # probability given to it by the newest query, mean over the row's query heads
    total: float = 0.0  # probability given to it since it was written, summed over time and those heads
    received: list[float] = field(default_factory=list)  # `latest` of every step since it was written
    by_head: list[np.ndarray] = field(default_factory=list)  # of every step, by query head of the row
    tally: float = 0.0  # what the policy adds up
    log_beta: float = 0.0  # what a gate said of the token when it came


@dataclass
class Moment:
    """What is seen of one token.

    `kept[layer][row]` are the positions held after the step, sorted. `scores[layer][row]` are the scores of
    the tokens that could have been forgotten in it (the eligible ones), by position; None where none was.
    """

    logits: np.ndarray  # [V]
    kept: list[list[list[int]]]
    scores: list[list[dict[int, float] | None]]


def run(
    config: "Config",
    policy: str,
    params: "Params",
    tokens: Sequence[int],
    budget: int | Sequence[int] | np.ndarray,
    oneshot: int = 0,
    positions: str = "absolute",
    rule: Callable[[Memory], float] | None = None,
    prompt: int = 0,
    gate: Callable[[int, int, np.ndarray, np.ndarray, np.ndarray], float] | None = None,
) -> list[Moment]:
    """Steps through the tokens from an empty state.

    Args:
      budget: tokens kept after a step, one number, or one per layer, or one per layer and KV head [L, K].
      oneshot: so many tokens are a prompt in the authors' way: nothing is forgotten before its last token,
        after which the whole surplus goes, however many tokens the policy cuts at once.
      positions: where rotary encoding takes the held tokens to stand, see `places_of`.
      rule: the score of a policy of one's own, from what is remembered of a token. The policy's text is then
        `own`, with the options that every policy has: `own:scope=head,sinks=1`.
      prompt: so many first tokens are protected, where the policy has `prompt=True`.
      gate: log beta of a token, from the layer's index, the KV head, its key (unrotated) [H], its value [H], and the
        layer's input [D], for the policy `learned`. A row of many heads has their mean.
    """
    if positions not in ("absolute", "cache", "gap"):
        raise ValueError(f"the oracle knows no positions {positions!r}")
    settings = read_policy(policy)
    if (settings.name == "own") != (rule is not None):
        raise ValueError(f"the policy is {policy!r} and the rule {rule}; a rule goes with the policy 'own' only")
    settings.own = rule
    weights = as_numpy(params)
    all_heads = list(range(config.num_kv_heads))
    heads_of_row = [all_heads] if settings.scope == "layer" else [[head] for head in all_heads]
    state: list[list[list[Memory]]] = [[[] for _ in heads_of_row] for _ in range(config.num_layers)]
    budgets = budgets_of(config, settings, budget, len(heads_of_row))
    queries: list[list[np.ndarray]] = [[] for _ in range(config.num_layers)]
    moments = []
    for t, token in enumerate(tokens):
        x = weights.embedding[int(token)]  # [D]
        scores = []
        for index, (layer, rows, limits) in enumerate(zip(weights.layers, state, budgets, strict=True)):
            seen = norm(config, x, layer.attention_norm)
            x = x + attention(
                config, index, layer, rows, heads_of_row, seen, t, positions, queries[index], settings, gate
            )
            x = x + mlp(layer, norm(config, x, layer.mlp_norm))
            views = [
                View(
                    rule=settings,
                    row=row,
                    number=number,
                    layer=index,
                    heads=heads_of_row[number],
                    group_size=config.group_size,
                    queries=queries[index],
                    t=t,
                    budget=limits[number] if settings.adaptive is None else sum(limits) // len(limits),
                    pinned=prompt if settings.prompt else 0,
                    turn=unturned if index in config.unrotated_layers else partial(rotate, config),
                    absolute=positions == "absolute",
                    frequencies=frequencies(config) * (index not in config.unrotated_layers),
                    lengthening=lengthening(config),
                )
                for number, row in enumerate(rows)
            ]
            if settings.name in TALLIES:
                for view in views:
                    TALLIES[settings.name](view)
            window = window_of(config, index)
            if t >= oneshot - 1 and positions == "absolute":  # the query at t + 1 sees what is less than W behind it
                for row in rows:
                    row[:] = [memory for memory in row if t + 1 - memory.position < window]
            if t < oneshot - 1:
                scores.append([None for _ in rows])
                continue
            every = 1 if t == oneshot - 1 else settings.every
            if settings.adaptive is None:
                scores.append([forget([view], limit, every)[0] for view, limit in zip(views, limits, strict=True)])
            else:
                least = 1 if t == oneshot - 1 else settings.every * len(rows)
                safe = max(math.floor(settings.adaptive * views[0].budget), 1)
                scores.append(forget(views, sum(limits), least, safe))
        logits = norm(config, x, weights.final_norm) @ weights.unembedding
        kept = [[sorted(memory.position for memory in row) for row in rows] for rows in state]
        moments.append(Moment(logits, kept, scores))
    return moments


def freed(moments: list[Moment]) -> list[list[list[int | None]]]:
    """By layer, row and token: the first step after which the token is not among those kept; None: it always is."""
    count = len(moments)

    def first(layer: int, row: int, position: int) -> int | None:
        return next((t for t in range(position, count) if position not in moments[t].kept[layer][row]), None)

    return [
        [[first(layer, row, position) for position in range(count)] for row in range(len(rows))]
        for layer, rows in enumerate(moments[0].kept)
    ]


def budgets_of(config: "Config", rule: Rule, budget: Any, rows: int) -> list[list[int]]:
    """Tokens kept by layer and row."""
    given = np.asarray(budget)
    given = np.broadcast_to(given[:, None] if given.ndim == 1 else given, (config.num_layers, rows)).tolist()
    if rule.pyramid is None:
        return given
    return [
        [in_pyramid(limit, resolved(rule.recent, limit), rule.pyramid, index, config.num_layers) for limit in limits]
        for index, limits in enumerate(given)
    ]


def window_of(config: "Config", index: int) -> float:
    """How many tokens a query of a layer sees, itself included."""
    slides = config.sliding_layers is None or index in config.sliding_layers
    return config.sliding_window if slides and config.sliding_window is not None else math.inf


def attention(
    config: "Config",
    index: int,
    layer: SimpleNamespace,
    rows: list[list[Memory]],
    heads_of_row: list[list[int]],
    x: np.ndarray,
    t: int,
    positions: str,
    read: list[np.ndarray],
    rule: Rule,
    gate: Callable[..., float] | None,
) -> np.ndarray:
    """Writes the token, attends to all that is held, and notes in each memory what it received; [D].

    The queries, not rotated, are appended to `read`.
    """
    queries, keys, values = projections(config, layer, x)  # [N, H], [K, H], [K, H]
    read.append(queries)
    rotated = index not in config.unrotated_layers
    mixed = np.zeros_like(queries)  # [N, H]
    for row, kv_heads in zip(rows, heads_of_row, strict=True):
        row.append(Memory(t, keys, values))
        if gate is not None:
            row[-1].log_beta = float(np.mean([gate(index, k, keys[k], values[k], x) for k in kv_heads]))
        faded = np.array([faded_for(rule, memory, t) for memory in row])
        # A row's tokens may all have moved since the last step, so every key is rotated anew.
        places = places_of(row, positions)
        turned_queries, turned_keys = queries, [memory.key for memory in row]  # [N, H], each [K, H]
        if rotated:
            turned_queries = rotate(config, queries, places[t])
            turned_keys = [rotate(config, memory.key, places[memory.position]) for memory in row]
        hidden = np.array([places[t] - places[memory.position] >= window_of(config, index) for memory in row])
        received = []  # one [len(row)] per query head of the row
        for n in range(config.num_heads):
            k = n // config.group_size
            if k in kv_heads:
                products = np.array([turned_queries[n] @ key[k] for key in turned_keys])
                probs = softmax(np.where(hidden, -np.inf, products / math.sqrt(config.head_dim) + faded))
                for prob, memory in zip(probs, row, strict=True):
                    mixed[n] += prob * memory.value[k]
                received.append(probs)
        for i, memory in enumerate(row):
            memory.latest = sum(probs[i] for probs in received) / len(received)
            memory.received.append(memory.latest)
            memory.total += sum(probs[i] for probs in received)
            memory.by_head.append(np.array([probs[i] for probs in received]))
    return plus(mixed.reshape(-1) @ layer.output, layer.output_bias)


def faded_for(rule: Rule, memory: Memory, t: int) -> float:
    """What is added to the logit of a token for the query at t, under a gate that is soft."""
    age = t - memory.position
    protected = memory.position < rule.sinks or age < (rule.recent or 0)
    if not getattr(rule.options, "soft", False) or age == 0 or protected:
        return 0.0
    return memory.log_beta * (age if rule.options.ageing else 1)


def places_of(row: list[Memory], positions: str) -> dict[int, float]:
    """Where rotary encoding takes each token of a row to stand, by its true position.

    absolute: at its true position. cache: at its rank in the row, the oldest at 0. gap: the oldest at 0, each
    other one `shortened(distance)` after its neighbour, where `distance` is the true one.
    """
    held = sorted(memory.position for memory in row)
    if positions == "absolute":
        return {position: position for position in held}
    if positions == "cache":
        return {position: rank for rank, position in enumerate(held)}
    places = {held[0]: 0.0}
    for before, position in pairwise(held):
        places[position] = places[before] + shortened(position - before)
    return places


def shortened(distance: int) -> float:
    """Near neighbours keep their distance, far ones get ln ln of it; 11 comes out nearer than 10, as defined."""
    return distance if distance <= 10 else math.log(math.log(distance))


def forget(views: list[View], budget: int, least: int, safe: int = 0) -> list[dict[int, float] | None]:
    """Removes tokens from rows that share a budget until so many are left, if that are at least `least`.

    Returns for each row the scores of what could have gone, None if nothing went in any. In every row the `safe`
    tokens that would go last stay.
    """
    going = sum(len(view.row) for view in views) - budget
    if going < least:
        return [None for _ in views]
    enough = sum(int((~view.protected).sum()) for view in views) >= going and not safe
    candidates = []  # by view, in the order in which they would go
    for view in views:
        protected = view.protected
        view.considered = ~protected if enough else np.ones_like(protected)
        scores = SCORES[view.rule.name](view)
        # Protected tokens go last. A NaN is the lowest score; among equals the oldest token goes.
        order = sorted(
            (bool(protected[j]), as_lowest(scores[j]), memory.position, view.number, scores[j])
            for j, memory in enumerate(view.row)
        )
        candidates.append(order[: max(len(order) - safe, 0)])
    lowest = sorted(candidate for order in candidates for candidate in order)[:going]
    for view in views:
        gone = {position for _, _, position, number, _ in lowest if number == view.number}
        view.row[:] = [memory for memory in view.row if memory.position not in gone]
    reached = lowest[-1][0]  # whether protected tokens had to go
    return [{token[2]: token[4] for token in order if token[0] <= reached} or None for order in candidates]


def unturned(heads: np.ndarray, place: Any) -> np.ndarray:
    """What stands for `rotate` in layers without rotary encoding."""
    return heads


def full_logits(config: "Config", params: "Params", tokens: Sequence[int]) -> np.ndarray:
    """The transformer as it is usually written, all tokens at once under a causal mask; [T, V]."""
    weights = as_numpy(params)
    x = weights.embedding[np.asarray(tokens)]  # [T, D]
    times = np.arange(len(x))
    future = times[None, :] > times[:, None]  # [T, T], query by key
    for index, layer in enumerate(weights.layers):
        queries, keys, values = projections(config, layer, norm(config, x, layer.attention_norm))
        if index not in config.unrotated_layers:
            queries, keys = rotate(config, queries, times), rotate(config, keys, times)
        unseen = future | (times[:, None] - times[None, :] >= window_of(config, index))
        keys, values = (np.repeat(heads, config.group_size, axis=1) for heads in (keys, values))  # [T, N, H]
        products = np.einsum("tnh,snh->nts", queries, keys) / np.sqrt(config.head_dim)
        probs = softmax(np.where(unseen, -np.inf, products))  # [N, T, T]
        mixed = np.einsum("nts,snh->tnh", probs, values)
        x = x + plus(mixed.reshape(len(x), -1) @ layer.output, layer.output_bias)
        x = x + mlp(layer, norm(config, x, layer.mlp_norm))
    return norm(config, x, weights.final_norm) @ weights.unembedding


# The parts that see one token at a time; x is [D] or [T, D], `place` accordingly.


def projections(config: "Config", layer: SimpleNamespace, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Query [..., N, H] and key [..., K, H], neither rotated, and value [..., K, H]."""
    width = config.head_dim
    query = plus(x @ layer.query, layer.query_bias).reshape(*x.shape[:-1], -1, width)
    key = plus(x @ layer.key, layer.key_bias).reshape(*x.shape[:-1], -1, width)
    value = plus(x @ layer.value, layer.value_bias).reshape(*x.shape[:-1], -1, width)
    if config.qk_norm:
        query, key = norm(config, query, layer.query_norm), norm(config, key, layer.key_norm)
    return query, key, value


def rotate(config: "Config", heads: np.ndarray, place: float | np.ndarray) -> np.ndarray:
    """Turns each pair (i, i + H/2) by the angle place * frequency_i; yarn also makes it longer."""
    angle = np.multiply.outer(place, frequencies(config))[..., None, :]  # [..., 1, H/2]
    first, second = np.split(heads, 2, axis=-1)
    cos, sin = np.cos(angle) * lengthening(config), np.sin(angle) * lengthening(config)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def lengthening(config: "Config") -> float:
    rope = config.rope
    if rope.kind != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    return 1.0 if rope.factor <= 1 else 0.1 * math.log(rope.factor) + 1


def turning(config: "Config", turns: float) -> float:
    """The i, not whole, of a pair that turns so often within the original length: L theta^(-2i/H) = 2 pi turns."""
    return math.log(config.rope.original_length / (2 * math.pi * turns), config.rope.theta) * config.head_dim / 2


def frequencies(config: "Config") -> np.ndarray:
    """Radians per position of each rotated pair; [H/2]."""
    rope = config.rope
    result = []
    fast, slow = (turning(config, turns) for turns in (rope.beta_fast, rope.beta_slow))
    if rope.truncate:
        fast, slow = math.floor(fast), math.ceil(slow)
    fast, slow = max(fast, 0), min(slow, config.head_dim - 1)
    for i in range(config.head_dim // 2):
        frequency = rope.theta ** (-2 * i / config.head_dim)
        if rope.kind == "linear":
            frequency /= rope.factor
        elif rope.kind == "llama3":
            turns = rope.original_length * frequency / (2 * math.pi)  # original_length / wavelength
            if turns < rope.low_freq_factor:
                frequency /= rope.factor
            elif turns <= rope.high_freq_factor:
                smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
                frequency = (1 - smooth) * frequency / rope.factor + smooth * frequency
        elif rope.kind == "yarn":
            if i > fast:
                slowness = min((i - fast) / (slow - fast), 1) if slow > fast else 1
                frequency = (1 - slowness) * frequency + slowness * frequency / rope.factor
        result.append(frequency)
    return np.array(result)


def norm(config: "Config", x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config.norm_eps) * weight


def mlp(layer: SimpleNamespace, x: np.ndarray) -> np.ndarray:
    gate = plus(x @ layer.gate, layer.gate_bias)  # [..., F]
    up = plus(x @ layer.up, layer.up_bias)
    return plus(gate / (1 + np.exp(-gate)) * up @ layer.down, layer.down_bias)


def plus(x: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    return x if bias is None else x + bias


def as_numpy(params: "Params") -> SimpleNamespace:
    """The weights in float64, under the same names; a tied unembedding is filled in."""

    def convert(node: Any) -> SimpleNamespace:
        return SimpleNamespace(**{n: None if w is None else np.asarray(w, np.float64) for n, w in vars(node).items()})

    embedding, unembedding = np.asarray(params.embedding, np.float64), params.unembedding
    return SimpleNamespace(
        embedding=embedding,
        layers=[convert(layer) for layer in params.layers],
        final_norm=np.asarray(params.final_norm, np.float64),
        unembedding=embedding.T if unembedding is None else np.asarray(unembedding, np.float64),
    )
