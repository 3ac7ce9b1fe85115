"""The policies written from their definitions: what a token of a row is worth, and what is protected.

A score is a function of a View, all that a policy may see of a row after a token; of two tokens the one with the
lower score goes first. Axis letters beside those of oracle.py: J held tokens of the row, oldest first, B those in
a block, P query heads that share the row. Nothing here comes from the library, nor from the recurrence.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from oracle import Memory

COMMON = {
    "scope": "head",
    "sinks": 0,
    "recent": 0,
    "every": 1,
    "adaptive": None,
    "pyramid": None,
    "prompt": False,
    "seed": 0,
}
# What a policy has instead of COMMON, and the options that it alone has.
POLICIES: dict[str, dict[str, Any]] = {
    "full": {"scope": "layer"},
    "random": {"scope": "layer", "apart": False},
    "window": {"scope": "layer"},
    "tova": {"scope": "layer"},
    "own": {"scope": "layer"},
    "h2o": {"recent": None, "normalize": False, "weigh": False},
    "knorm": {},
    "keydiff": {"every": 128},
    "cur": {"sinks": 4, "window": 16},
    "a2sf": {"recent": 16, "decay": 0.5},
    "roco": {"recent": 10, "share": 0.3},
    "keyformer": {"recent": 0.3, "start": 1.0, "end": 2.0, "horizon": 2048},
    "snapkv": {"recent": 64, "kernel": 5},
    "snapkvd": {"recent": 8, "every": 128, "kernel": 7},
    "rkv": {"recent": 8, "every": 128, "kernel": 7, "mix": 0.07},
    "gkv": {"recent": 8, "every": 128, "decay": 0.8},
    "morphkv": {"recent": 32, "fuse": "max"},
    "lagkv": {"sinks": 4, "every": 128, "lag": 128},
    "expectedattention": {"every": 128, "sinks": 4, "future": 512, "epsilon": 0.0},
    "triattention": {"every": 128, "prompt": True},
    "learned": {"ageing": True, "soft": False},
}


@dataclass
class Rule:
    """A policy's text form, read."""

    name: str
    scope: str
    sinks: int
    recent: int | float | None  # None: half the budget; a fraction: so much of it
    seed: int
    own: Callable[["Memory"], float] | None = None  # the score of a policy named `own`
    every: int = 1
    adaptive: float | None = None
    pyramid: float | None = None
    prompt: bool = False
    options: SimpleNamespace = field(default_factory=SimpleNamespace)  # those that this policy alone has


def read_policy(text: str) -> Rule:
    """Reads `name` or `name:option=value,...`; `recent=half` is half the budget, H2O's default."""
    name, _, rest = text.partition(":")
    given = dict(option.split("=") for option in rest.split(",") if option)
    values = COMMON | POLICIES.get(name, {})
    if name not in POLICIES or not given.keys() <= values.keys():
        raise ValueError(f"the oracle cannot read policy {text!r}")
    values |= {option: read_value(option, value, values[option]) for option, value in given.items()}
    common = {option: values.pop(option) for option in COMMON}
    rule = Rule(name, options=SimpleNamespace(**values), **common)
    if (
        rule.scope not in ("layer", "head")
        or (rule.adaptive is not None and rule.scope != "head")
        or (isinstance(rule.recent, float) and not 0 < rule.recent < 1)
        or getattr(rule.options, "fuse", "max") not in ("max", "sum")
        or getattr(rule.options, "kernel", 1) % 2 == 0
    ):
        raise ValueError(f"the oracle cannot read policy {text!r}")
    return rule


def read_value(option: str, text: str, default: Any) -> Any:
    if option == "recent":
        return None if text == "half" else float(text) if "." in text else int(text)
    if option in ("adaptive", "pyramid"):
        return float(text)
    if isinstance(default, bool):
        if text not in ("True", "False"):
            raise ValueError(f"{option} is True or False, and not {text!r}")
        return text == "True"
    return type(default)(text)


def resolved(recent: int | float | None, budget: int) -> int:
    """How many of the newest tokens are protected at a budget."""
    if recent is None:
        return budget // 2
    return math.floor(recent * budget) if isinstance(recent, float) else recent


def in_pyramid(budget: int, recent: int, steepness: float, index: int, count: int) -> int:
    """The budget of layer `index` of `count` where budgets fall from layer to layer and `budget` is their mean."""
    if count == 1:
        return budget
    middle = budget - recent
    low = middle / steepness
    high = 2 * middle - low
    return max(recent + math.floor(high - index * (high - low) / (count - 1) + 0.5), 1)


@dataclass
class View:
    """What a policy may see of one row after the token at position t was written and has attended."""

    rule: Rule
    row: list["Memory"]  # held now, oldest first
    number: int  # the row's
    layer: int  # the layer's
    heads: list[int]  # KV heads of the row
    group_size: int
    queries: list[np.ndarray]  # one [N, H] per token read so far, held or not; not rotated
    t: int
    budget: int
    pinned: int  # so many first tokens of the text are protected
    turn: Callable[[np.ndarray, Any], np.ndarray]  # heads [..., n, H] rotated by places [...]; not in NoPE layers
    absolute: bool  # whether keys are cached as rotated by their true positions
    frequencies: np.ndarray  # [H/2], zeros in NoPE layers
    lengthening: float = 1.0  # of heads by their rotation
    considered: np.ndarray | None = None  # [J], which tokens a policy of one's own is asked for; None: all

    @property
    def positions(self) -> np.ndarray:
        """[J]"""
        return np.array([memory.position for memory in self.row], int)

    @property
    def recent(self) -> int:
        """MorphKV's window lies before the newest token, which is kept as well."""
        return resolved(self.rule.recent, self.budget) + (self.rule.name == "morphkv")

    @property
    def protected(self) -> np.ndarray:
        """[J]"""
        positions = self.positions
        first = max(self.rule.sinks, self.pinned)
        return (positions < first) | (positions >= self.t + 1 - self.recent)

    @property
    def ages(self) -> np.ndarray:
        """How many queries each token has seen, its own included; [J]."""
        return self.t + 1 - self.positions

    @property
    def attention(self) -> np.ndarray:
        """The newest query's probabilities; [P, J]."""
        return np.array([memory.by_head[-1] for memory in self.row]).T

    @property
    def row_query_heads(self) -> list[int]:
        return [n for head in self.heads for n in self.query_heads(head)]

    def query_heads(self, head: int) -> list[int]:
        return list(range(head * self.group_size, (head + 1) * self.group_size))

    def bare_keys(self, head: int) -> np.ndarray:
        """Not rotated; [J, H]."""
        return np.array([memory.key[head] for memory in self.row])

    def turned_keys(self, head: int) -> np.ndarray:
        """Rotated by their true positions, in every position mode; [J, H]."""
        return self.turn(self.bare_keys(head)[:, None], self.positions)[:, 0]

    def keys(self, head: int) -> np.ndarray:
        """As cached; [J, H]."""
        return self.turned_keys(head) if self.absolute else self.bare_keys(head)

    def values(self, head: int) -> np.ndarray:
        """[J, H]"""
        return np.array([memory.value[head] for memory in self.row])

    def products(self, i: int, head: int) -> np.ndarray:
        """The logits of the query at position i, as cached, for all held tokens; [G, J]."""
        queries = self.turn(self.queries[i], i) if self.absolute else self.queries[i]
        keys = self.keys(head)
        return queries[self.query_heads(head)] @ keys.T / math.sqrt(keys.shape[1])

    @property
    def window(self) -> range:
        """Positions of the queries in the observation window."""
        return range(max(self.t + 1 - self.recent, 0), self.t + 1)

    @property
    def distant(self) -> np.ndarray:
        """Which tokens are older than the observation window; [J]."""
        return self.positions < self.t + 1 - self.recent


# What a policy adds up at every token, before anything is cut; in `tally` of each memory.


def add_a2sf(view: View) -> None:
    for memory, received in zip(view.row, view.attention.sum(axis=0), strict=True):
        memory.tally = view.rule.options.decay * memory.tally + received


def add_h2o(view: View) -> None:
    """Attention weighed by the length of the values; only `weigh=True` needs it."""
    lengths = np.array([lengths_of(view.values(n // view.group_size)) for n in view.row_query_heads])  # [P, J]
    weighed = view.attention * lengths
    shares = weighed / weighed.sum(axis=1, keepdims=True)
    for memory, received in zip(view.row, shares.sum(axis=0), strict=True):
        memory.tally += received


def add_keyformer(view: View) -> None:
    options = view.rule.options
    heat = options.start + (options.end - options.start) * min(view.t / options.horizon, 1)
    noise = [[gumbel(view, n, memory.position) for memory in view.row] for n in view.row_query_heads]
    with np.errstate(divide="ignore"):  # attention of 0 stays 0
        shares = softmax((np.log(view.attention) + noise) / heat)
    for memory, received in zip(view.row, shares.sum(axis=0), strict=True):
        memory.tally += received


def gumbel(view: View, n: int, position: int) -> float:
    """The noise on what query head n at position t gives a token."""
    x = position * 0x9E3779B1 + n * 0x85EBCA77 + view.t * 0x27D4EB2F + view.layer * 0x165667B1
    u = (hash32(x + view.rule.seed * 0xC2B2AE3D) + 0.5) / 2**32
    return -math.log(-math.log(min(u, 1 - 2**-24)))


TALLIES: dict[str, Callable[[View], None]] = {"a2sf": add_a2sf, "h2o": add_h2o, "keyformer": add_keyformer}


# Scores of whole rows; [J].


def window(view: View) -> list[int]:
    return [memory.position for memory in view.row]


def random(view: View) -> list[int]:
    layer = view.layer if view.rule.options.apart else 0
    return [random_score(view.rule.seed, view.number, memory.position, layer) for memory in view.row]


def tova(view: View) -> list[float]:
    return [memory.latest for memory in view.row]


def own(view: View) -> list[float]:
    """Asks the rule for no more tokens than could go."""
    assert view.rule.own is not None
    asked = [True] * len(view.row) if view.considered is None else view.considered
    return [view.rule.own(memory) if ask else 0.0 for memory, ask in zip(view.row, asked, strict=True)]


def h2o(view: View) -> np.ndarray:
    options = view.rule.options
    totals = np.array([memory.tally if options.weigh else memory.total for memory in view.row])
    return totals / view.ages if options.normalize else totals


def tallied(view: View) -> list[float]:
    return [memory.tally for memory in view.row]


def roco(view: View) -> np.ndarray:
    """Of the tokens whose attention varies least, the mean attention; the others stay."""
    rule = view.rule
    means = np.array([sum(memory.received) for memory in view.row]) / view.ages
    squares = np.array([sum(received**2 for received in memory.received) for memory in view.row]) / view.ages
    deviations = np.sqrt(np.maximum(squares - means**2, 0))
    count = max(view.budget - math.floor(rule.options.share * view.budget) - rule.sinks, rule.every)
    free = [j for j, protected in enumerate(view.protected) if not protected]
    steady = sorted(free, key=lambda j: (deviations[j], j))[:count]
    scores = np.full(len(view.row), np.inf)
    scores[steady] = means[steady]
    return scores


def gkv(view: View) -> np.ndarray:
    """The greater of what the window gives a token now and what it had at the last cut, made less."""
    seen = mean_over_heads(of_distant(gkv_seen))(view)  # [J]
    for j in np.flatnonzero(view.distant):
        memory = view.row[j]
        memory.tally = max(view.rule.options.decay * memory.tally, seen[j])
    return np.where(view.distant, [memory.tally for memory in view.row], 0.0)


def gkv_seen(view: View, head: int) -> np.ndarray:
    """The mean over the window of the group's greatest probability, as a share of the greatest mean; [|D|]."""
    mean = over_queries(view, lambda i: until(view, i, head).max(axis=0))[view.distant]
    return mean / mean.max() if view.window else mean


# Scores of one KV head in a row, of which a row of several takes the mean; [J], and [|D|] with an observation window.


def knorm(view: View, head: int) -> np.ndarray:
    return -lengths_of(view.keys(head))


def keydiff(view: View, head: int) -> np.ndarray:
    keys = view.keys(head)
    directions = keys / lengths_of(keys)[:, None]
    anchor = directions.mean(axis=0)
    return -directions @ anchor / np.linalg.norm(anchor)


def cur(view: View, head: int) -> np.ndarray:
    """The shares of a token in the squared lengths of the keys and values of its block of held tokens, multiplied."""
    groups = np.arange(len(view.row)) // view.rule.options.window
    together = groups[:, None] == groups[None, :]  # [J, J]
    keys, values = (lengths_of(heads) ** 2 for heads in (view.keys(head), view.values(head)))
    return (keys / (together @ keys)) * (values / (together @ values))


def snapkv(view: View, head: int) -> np.ndarray:
    """What the window gives a token and its neighbours; beyond the ends there are zeros."""
    kernel = view.rule.options.kernel
    probs = over_queries(view, lambda i: until(view, i, head).mean(axis=0))[view.distant]
    return np.array([part.sum() / kernel for part in neighbours(probs, kernel)])


def snapkvd(view: View, head: int) -> np.ndarray:
    """The most that the window gives a token or one of its neighbours, of what it gives distant tokens."""

    def probs(i: int) -> np.ndarray:
        products = np.where(view.distant, view.products(i, head), -np.inf)
        return softmax(products.max(axis=0))

    mean = over_queries(view, probs)[view.distant]
    return np.array([part.max() for part in neighbours(mean, view.rule.options.kernel)])


def rkv(view: View, head: int) -> np.ndarray:
    mix = view.rule.options.mix
    redundancy = softmax(similarity(view.keys(head)))
    return mix * snapkvd(view, head) - (1 - mix) * redundancy[view.distant]


def similarity(keys: np.ndarray) -> np.ndarray:
    """How like the others each key is, in the mean, the newest of those like another one not counted for it; [J]."""
    directions = keys / lengths_of(keys)[:, None]
    cosines = directions @ directions.T
    np.fill_diagonal(cosines, 0)
    for of_token in cosines:
        alike = np.flatnonzero(of_token > 0.5)
        of_token[alike[-1] if len(alike) else 0] = 0
    return cosines.mean(axis=0)


def morphkv(view: View, head: int) -> np.ndarray:
    """The greatest probability, or the sum, that queries before the newest give, of what they give distant tokens."""
    distant = view.distant
    queries = range(max(view.t + 1 - view.recent, 0), view.t)
    if not queries:
        return np.zeros(distant.sum())
    probs = np.array([softmax(view.products(i, head).sum(axis=0)[distant]) for i in queries])  # [w, |D|]
    return probs.max(axis=0) if view.rule.options.fuse == "max" else probs.sum(axis=0)


def lagkv(view: View, head: int) -> np.ndarray:
    """The rank within its block of how far a token is spread, as seen from the block that follows."""
    lag = view.rule.options.lag
    later = np.flatnonzero(view.positions >= view.rule.sinks)
    blocks = [later[start : start + lag] for start in range(0, len(later) - lag + 1, lag)]  # full ones
    scores = np.ones(len(view.row))
    for block, reference in zip(blocks[:-1], blocks[1:], strict=True):
        spread = [lag_spread(heads[block], heads[reference]) for heads in (view.keys(head), view.values(head))]
        worth = [as_lowest(value) for value in spread[0] + spread[1]]
        order = sorted(range(lag), key=lambda j: (worth[j], j))
        scores[block[order]] = np.arange(lag) / lag
    return scores


def lag_spread(heads: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """[B] of two blocks [B, H]."""
    low, high = reference.min(axis=0), reference.max(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return softmax(((heads - low) / (high - low)).std(axis=1, ddof=1))


def learned(view: View) -> np.ndarray:
    """What will be left of each token's weight for the next query, as a logarithm."""
    ages = [view.t + 1 - memory.position if view.rule.options.ageing else 1 for memory in view.row]
    return np.array([age * memory.log_beta for age, memory in zip(ages, view.row, strict=True)])


def expectedattention(view: View, head: int) -> np.ndarray:
    """The attention that a Gaussian of queries, like those so far, would pay from the positions to come."""
    rule = view.rule
    there = view.positions >= rule.sinks
    keys = view.turned_keys(head)
    width = keys.shape[1]
    basis = np.broadcast_to(np.eye(width), (rule.options.future, width, width))
    ahead = view.turn(basis, view.t + 1 + np.arange(rule.options.future)).mean(axis=0).T  # [H, H]
    probs = np.zeros((view.group_size, len(view.row)))
    for g, n in enumerate(view.query_heads(head)):
        queries = np.array([of_token[n] for of_token in view.queries[rule.sinks :]]).reshape(-1, width)
        mean, covariance = moments(queries)
        products = keys @ ahead @ mean / math.sqrt(width)
        products += ((keys @ ahead @ covariance @ ahead.T) * keys).sum(axis=1) / (2 * width)
        if there.any():
            probs[g, there] = softmax(products[there])
    return (probs.mean(axis=0) + rule.options.epsilon) * lengths_of(view.values(head))


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [H] and covariance [H, H] of x [T, H], divided by T; zeros where there is none."""
    mean = x.sum(axis=0) / max(len(x), 1)
    return mean, (x - mean).T @ (x - mean) / max(len(x), 1)


def triattention(view: View, head: int) -> np.ndarray:
    """A token's mean logit for a mean query at distances to come, against that of the other tokens."""
    counted = view.positions >= view.pinned
    keys = as_pairs(view.bare_keys(head))  # [J, H/2]
    scores = []
    for n in view.query_heads(head):
        queries = as_pairs(np.array([of_token[n] for of_token in view.queries]))  # [T, H/2]
        mean, length = queries.mean(axis=0), abs(queries).mean(axis=0)
        phase = np.angle(mean * keys.conj())
        score = np.zeros(len(view.row))
        for power in range(17):
            distance = view.t - view.positions[:, None] + 2**power
            wave = abs(mean) * abs(keys) * np.cos(view.frequencies * distance + phase)
            score += (wave + (length - abs(mean)) * abs(keys)).sum(axis=1) / 17
        score *= view.lengthening**2
        if counted.any():  # else all is protected
            score = (score - score[counted].mean()) / (score[counted].std() + 1e-6)
        scores.append(score)
    return np.max(scores, axis=0)


def as_pairs(heads: np.ndarray) -> np.ndarray:
    """The pairs that rotate together, as complex numbers."""
    first, second = np.split(heads, 2, axis=-1)
    return first + 1j * second


def of_distant(of_head: Callable[[View, int], np.ndarray]) -> Callable[[View, int], np.ndarray]:
    """The score of a rule that knows distant tokens only; others have 0."""

    @functools.wraps(of_head)
    def of_all(view: View, head: int) -> np.ndarray:
        scores = np.zeros(len(view.row))
        if view.distant.any():
            scores[view.distant] = of_head(view, head)
        return scores

    return of_all


def mean_over_heads(of_head: Callable[[View, int], np.ndarray]) -> Callable[[View], np.ndarray]:
    @functools.wraps(of_head)
    def of_row(view: View) -> np.ndarray:
        return np.mean([of_head(view, head) for head in view.heads], axis=0)

    return of_row


SCORES: dict[str, Callable[[View], Any]] = {
    "full": window,
    "window": window,
    "random": random,
    "tova": tova,
    "own": own,
    "h2o": h2o,
    "knorm": mean_over_heads(knorm),
    "keydiff": mean_over_heads(keydiff),
    "cur": mean_over_heads(cur),
    "a2sf": tallied,
    "roco": roco,
    "keyformer": tallied,
    "snapkv": mean_over_heads(of_distant(snapkv)),
    "snapkvd": mean_over_heads(of_distant(snapkvd)),
    "rkv": mean_over_heads(of_distant(rkv)),
    "gkv": gkv,
    "morphkv": mean_over_heads(of_distant(morphkv)),
    "lagkv": mean_over_heads(lagkv),
    "expectedattention": mean_over_heads(expectedattention),
    "triattention": mean_over_heads(triattention),
    "learned": learned,
}


# What scores are made of.


def softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def lengths_of(heads: np.ndarray) -> np.ndarray:
    return np.linalg.norm(heads, axis=-1)


def as_lowest(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def until(view: View, i: int, head: int) -> np.ndarray:
    """What the query at position i would give the tokens held now that it can see; [G, J]."""
    return softmax(np.where(view.positions <= i, view.products(i, head), -np.inf))


def over_queries(view: View, of_query: Callable[[int], np.ndarray]) -> np.ndarray:
    """The mean over the observation window of what a query gives; [J]."""
    return np.mean([of_query(i) for i in view.window], axis=0) if view.window else np.zeros(len(view.row))


def neighbours(x: np.ndarray, kernel: int) -> list[np.ndarray]:
    """For each entry of x those less than half a kernel from it."""
    reach = kernel // 2
    return [x[max(j - reach, 0) : j + reach + 1] for j in range(len(x))]


def random_score(seed: int, row: int, position: int, layer: int = 0) -> int:
    return hash32(position * 0x9E3779B1 + row * 0x85EBCA77 + seed * 0xC2B2AE3D + layer * 0x27D4EB2F)


def hash32(x: int) -> int:
    """A hash of 32 bits."""
    x %= 2**32
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    x ^= x >> 16
    return x
