"""The recurrence written from its definition: numpy float64 and Python lists of remembered tokens.

Nothing here comes from the library; only the names of config fields and weights are shared. Axis letters are
those of the library: D model width, N query heads, K key/value heads, G = N // K, H head width, F mlp width,
V vocabulary, T time. A row is one list of remembered tokens: all K heads of a layer share one where the
policy's scope is the layer, each head has its own where it is the head.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

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


@dataclass
class Moment:
    """What is seen of one token.

    `kept[layer][row]` are the positions held after the step, sorted. `scores[layer][row]` are the scores of
    the tokens that could have been forgotten in it (the eligible ones), by position; None where none was.
    """

    logits: np.ndarray  # [V]
    kept: list[list[list[int]]]
    scores: list[list[dict[int, float] | None]]


@dataclass
class Rule:
    """A policy's text form, read."""

    name: str
    scope: str
    sinks: int
    recent: int | None  # None: half the budget
    seed: int
    own: Callable[[Memory], float] | None = None  # the score of a policy named `own`


def run(
    config: "Config",
    policy: str,
    params: "Params",
    tokens: Sequence[int],
    budget: int | Sequence[int],
    oneshot: int = 0,
    positions: str = "absolute",
    rule: Callable[[Memory], float] | None = None,
) -> list[Moment]:
    """Steps through the tokens from an empty state.

    Args:
      budget: tokens kept after a step, one number or one per layer.
      oneshot: so many tokens are a prompt in the authors' way: nothing is forgotten before its last token,
        after which the whole surplus goes.
      positions: where rotary encoding takes the held tokens to stand, see `places_of`.
      rule: the score of a policy of one's own, from what is remembered of a token. The policy's text is then
        `own`, with the options that every policy has: `own:scope=head,sinks=1`.
    """
    if positions not in ("absolute", "cache", "gap"):
        raise ValueError(f"the oracle knows no positions {positions!r}")
    settings = read_policy(policy)
    if (settings.name == "own") != (rule is not None):
        raise ValueError(f"the policy is {policy!r} and the rule {rule}; a rule goes with the policy 'own' only")
    settings.own = rule
    weights = as_numpy(params)
    budgets = np.broadcast_to(budget, config.num_layers).tolist()
    all_heads = list(range(config.num_kv_heads))
    heads_of_row = [all_heads] if settings.scope == "layer" else [[head] for head in all_heads]
    state: list[list[list[Memory]]] = [[[] for _ in heads_of_row] for _ in range(config.num_layers)]
    moments = []
    for t, token in enumerate(tokens):
        x = weights.embedding[int(token)]  # [D]
        scores = []
        for index, (layer, rows, limit) in enumerate(zip(weights.layers, state, budgets, strict=True)):
            seen = norm(config, x, layer.attention_norm)
            x = x + attention(config, index, layer, rows, heads_of_row, seen, t, positions)
            x = x + mlp(layer, norm(config, x, layer.mlp_norm))
            limit = limit if t >= oneshot - 1 else t + 1
            window = window_of(config, index)
            if t >= oneshot - 1 and positions == "absolute":  # the query at t + 1 sees what is less than W behind it
                for row in rows:
                    row[:] = [memory for memory in row if t + 1 - memory.position < window]
            scores.append([forget(settings, number, row, t, limit) for number, row in enumerate(rows)])
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
) -> np.ndarray:
    """Writes the token, attends to all that is held, and notes in each memory what it received; [D]."""
    queries, keys, values = projections(config, layer, x)  # [N, H], [K, H], [K, H]
    rotated = index not in config.unrotated_layers
    mixed = np.zeros_like(queries)  # [N, H]
    for row, kv_heads in zip(rows, heads_of_row, strict=True):
        row.append(Memory(t, keys, values))
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
                probs = softmax(np.where(hidden, -np.inf, products / math.sqrt(config.head_dim)))
                for prob, memory in zip(probs, row, strict=True):
                    mixed[n] += prob * memory.value[k]
                received.append(probs)
        for i, memory in enumerate(row):
            memory.latest = sum(probs[i] for probs in received) / len(received)
            memory.received.append(memory.latest)
            memory.total += sum(probs[i] for probs in received)
    return plus(mixed.reshape(-1) @ layer.output, layer.output_bias)


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


def forget(rule: Rule, number: int, row: list[Memory], t: int, budget: int) -> dict[int, float] | None:
    """Removes tokens from a row until `budget` are left; the scores that decided, None if nothing went."""
    recent = budget // 2 if rule.recent is None else rule.recent
    considered = {}
    while len(row) > budget:
        eligible = [m for m in row if rule.sinks <= m.position <= t - recent] or row
        scores = {m.position: score(rule, number, m) for m in eligible}
        # A NaN is the lowest score; among equals the oldest token goes.
        lowest = min(scores, key=lambda position: (as_lowest(scores[position]), position))
        row[:] = [m for m in row if m.position != lowest]
        considered |= scores
    return considered or None


def score(rule: Rule, number: int, memory: Memory) -> float:
    """What a token is worth to the policy; `number` is its row's."""
    match rule.name:
        case "full" | "window":
            return memory.position
        case "random":
            return random_score(rule.seed, number, memory.position)
        case "h2o":
            return memory.total
        case "tova":
            return memory.latest
        case "own":
            assert rule.own is not None
            return rule.own(memory)
    raise ValueError(f"policy {rule.name!r} has no score in the oracle")


def as_lowest(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def random_score(seed: int, row: int, position: int) -> int:
    """A hash of 32 bits."""
    x = (position * 0x9E3779B1 + row * 0x85EBCA77 + seed * 0xC2B2AE3D) % 2**32
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    x ^= x >> 16
    return x


def read_policy(text: str) -> Rule:
    """Reads `name` or `name:option=value,...`; `recent=half` is half the budget, H2O's default."""
    name, _, rest = text.partition(":")
    options = dict(option.split("=") for option in rest.split(",") if option)
    scope = options.pop("scope", "head" if name == "h2o" else "layer")
    recent = options.pop("recent", "half" if name == "h2o" else "0")
    sinks, seed = int(options.pop("sinks", "0")), int(options.pop("seed", "0"))
    if name not in ("full", "random", "window", "h2o", "tova", "own") or scope not in ("layer", "head") or options:
        raise ValueError(f"the oracle cannot read policy {text!r}")
    return Rule(name, scope, sinks, None if recent == "half" else int(recent), seed)


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


def softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


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
