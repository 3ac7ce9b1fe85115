"""The scores of the oracle against examples worked by hand, or in another way than the oracle's."""

import cmath
import math
from typing import Any

import numpy as np
import oracle
import oracle_policies
import pytest
import tiny
from oracle_policies import SCORES, TALLIES, View, hash32, in_pyramid, read_policy, resolved

CONFIG = tiny.SHALLOW  # 6 query heads, 3 KV heads

WEIGHTS = [1, 2, 3, 4, 10, 20]  # what a query of 1 gives the keys of `logarithmic`, before division by their sum


def view(
    policy: str,
    keys: Any,
    values: Any = None,
    queries: Any = None,
    positions: Any = None,
    t: int | None = None,
    group_size: int = 1,
    budget: int = 4,
    **given: Any,
) -> View:
    """A row of keys [J, K, H] as it is after token t, the newest one unless it is given; heads do not rotate."""
    keys = np.asarray(keys, float)
    values = keys if values is None else np.asarray(values, float)
    positions = range(len(keys)) if positions is None else positions
    row = [oracle.Memory(*memory) for memory in zip(positions, keys, values, strict=True)]
    queries = [] if queries is None else [np.asarray(query, float) for query in queries]
    t = row[-1].position if t is None else t
    default = dict(number=0, layer=0, pinned=0, turn=oracle.unturned, absolute=True, frequencies=np.zeros(1))
    return View(
        rule=read_policy(policy),
        row=row,
        heads=list(range(keys.shape[1])),
        group_size=group_size,
        queries=queries,
        t=t,
        budget=budget,
        **(default | given),
    )


def single(heads: Any) -> np.ndarray:
    """Heads [J, H] of rows of one KV head; [J, 1, H]."""
    return np.asarray(heads, float)[:, None]


def logarithmic(weights: Any) -> np.ndarray:
    """Keys of width 1 that a query of 1 gives attention in proportion to weights; [J, 1, 1]."""
    return np.log(np.asarray(weights, float))[:, None, None]


def scores(seen: View) -> list[float]:
    return np.asarray(SCORES[seen.rule.name](seen), float).tolist()


def attended(seen: View, *probs: list[float]) -> View:
    """The row after its newest query gave its tokens probs, one list per query head."""
    for memory, received in zip(seen.row, np.array(probs).T, strict=True):
        memory.by_head.append(received)
        memory.latest = received.mean()
        memory.received.append(memory.latest)
        memory.total += received.sum()
    TALLIES.get(seen.rule.name, lambda _: None)(seen)
    return seen


def close(expected: Any) -> Any:
    return pytest.approx(expected, rel=1e-12, abs=1e-15)


# Texts


@pytest.mark.parametrize(
    "name, scope, sinks, recent, every, prompt",
    [
        ("full", "layer", 0, 0, 1, False),
        ("random", "layer", 0, 0, 1, False),
        ("window", "layer", 0, 0, 1, False),
        ("tova", "layer", 0, 0, 1, False),
        ("h2o", "head", 0, None, 1, False),
        ("knorm", "head", 0, 0, 1, False),
        ("keydiff", "head", 0, 0, 128, False),
        ("cur", "head", 4, 0, 1, False),
        ("a2sf", "head", 0, 16, 1, False),
        ("roco", "head", 0, 10, 1, False),
        ("keyformer", "head", 0, 0.3, 1, False),
        ("snapkv", "head", 0, 64, 1, False),
        ("snapkvd", "head", 0, 8, 128, False),
        ("rkv", "head", 0, 8, 128, False),
        ("gkv", "head", 0, 8, 128, False),
        ("morphkv", "head", 0, 32, 1, False),
        ("lagkv", "head", 4, 0, 128, False),
        ("expectedattention", "head", 4, 0, 128, False),
        ("triattention", "head", 0, 0, 128, True),
        ("learned", "head", 0, 0, 1, False),
    ],
)
def test_defaults(name, scope, sinks, recent, every, prompt):
    rule = read_policy(name)
    assert (rule.scope, rule.sinks, rule.recent, rule.every, rule.prompt) == (scope, sinks, recent, every, prompt)
    assert rule.adaptive is None and rule.pyramid is None and rule.seed == 0


def test_options_are_read():
    rule = read_policy("rkv:every=4,recent=0.3,mix=0.2,adaptive=0.25,pyramid=20,prompt=True,sinks=2")
    assert (rule.every, rule.recent, rule.adaptive, rule.pyramid) == (4, 0.3, 0.25, 20.0)
    assert (rule.prompt, rule.sinks, rule.options.mix, rule.options.kernel) == (True, 2, 0.2, 7)
    assert read_policy("tova:recent=half").recent is None
    assert read_policy("random:apart=True").options.apart is True


@pytest.mark.parametrize(
    "text",
    ["nosuch", "tova:kernel=5", "tova:adaptive=0.3", "tova:scope=row", "tova:recent=1.5", "h2o:weigh=1", "tova:every"]
    + ["morphkv:fuse=mean", "snapkv:kernel=4"],
)
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError):
        read_policy(text)


def test_recent_is_a_number_or_a_part_of_the_budget():
    assert [resolved(recent, 9) for recent in (3, None, 0.3, 0.5)] == [3, 4, 2, 4]


# What goes


def test_tokens_go_when_so_many_are_too_many():
    counts = [len(m.kept[0][0]) for m in run("window:every=3", 12, 5)]
    assert counts == [1, 2, 3, 4, 5, 6, 7, 5, 6, 7, 5, 6]


def test_the_surplus_of_a_prompt_goes_at_once():
    moments = run("window:every=3", 12, 5, oneshot=10)
    assert [len(m.kept[0][0]) for m in moments] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 5, 6, 7]
    assert moments[9].kept[0][0] == [5, 6, 7, 8, 9]
    assert [t for t, m in enumerate(moments) if m.scores[0][0]] == [9]


def test_the_surplus_of_a_prompt_goes_where_it_is_less_than_goes_at_once():
    assert [len(m.kept[0][0]) for m in run("window:every=3", 9, 5, oneshot=6)] == [1, 2, 3, 4, 5, 5, 6, 7, 5]
    adaptive = run("random:scope=head,adaptive=0.5,every=3", 9, 5, oneshot=6)
    assert [sum(len(row) for row in m.kept[0]) for m in adaptive] == [3, 6, 9, 12, 15, 15, 18, 21, 15]


def test_a_prompt_is_protected_where_the_policy_says_so():
    assert run("window:prompt=True", 9, 4, prompt=2)[-1].kept == [[[0, 1, 7, 8]]]
    assert run("window:prompt=True", 9, 4)[-1].kept == [[[5, 6, 7, 8]]]
    assert run("window:prompt=False", 9, 4, prompt=2)[-1].kept == [[[5, 6, 7, 8]]]
    assert run("window:prompt=True", 9, 4, prompt=6)[-1].kept == [[[2, 3, 4, 5]]]  # nothing but the newest is free


def test_every_row_has_its_budget():
    kept = run("window:scope=head", 9, np.array([[1, 2, 4]]))[-1].kept
    assert kept == [[[8], [7, 8], [5, 6, 7, 8]]]


def test_budgets_fall_from_layer_to_layer():
    # 8 + 56 / 20 = 10.8 in the last layer, 8 + 112 - 2.8 = 117.2 in the first; 106.4 / 29 = 3.669 from each to the next
    budgets = [in_pyramid(64, 8, 20, index, 30) for index in range(30)]
    assert budgets[:4] == [117, 114, 110, 106] and budgets[-3:] == [18, 14, 11]
    assert budgets[14] == 66 and budgets[15] == 62  # 65.83 and 62.17 about the mean of 64
    assert in_pyramid(64, 8, 20, 0, 1) == 64
    assert [in_pyramid(2, 0, 4, index, 2) for index in (0, 1)] == [4, 1]  # 3.5, of which the half counts, and 0.5


def test_the_pyramid_takes_its_window_from_the_mean_budget():
    config = CONFIG.replace(num_layers=2)
    text = "window:pyramid=4,recent=0.5"  # 8 at a window of 4: 4 + 1 and 4 + 7
    kept = oracle.run(config, text, tiny.params(config=config), tiny.tokens(15).tolist(), 8)[-1].kept
    assert [len(rows[0]) for rows in kept] == [11, 5]


def run(policy: str, count: int, budget: Any, **given: Any) -> list[oracle.Moment]:
    return oracle.run(CONFIG, policy, tiny.params(config=CONFIG), tiny.tokens(count).tolist(), budget, **given)


def rows(*worths: list[float], options: str = "scope=head", budget: int = 4) -> list[View]:
    """Rows whose tokens are worth so much to a rule of one's own, by position."""
    result = []
    for number, worth in enumerate(worths):
        seen = view(f"own:{options}", np.zeros((len(worth), 1, 1)), budget=budget, number=number)
        seen.rule.own = lambda memory, worth=worth: worth[memory.position]
        result.append(seen)
    return result


def left(views: list[View]) -> list[list[int]]:
    return [[memory.position for memory in seen.row] for seen in views]


def test_a_row_loses_its_lowest_all_at_once():
    views = rows([3, 1, math.nan, 5, 1, 0, 4], options="sinks=1,recent=1")
    assert oracle.forget(views, 4, 1) == [{1: 1, 2: pytest.approx(math.nan, nan_ok=True), 3: 5, 4: 1, 5: 0}]
    assert left(views) == [[0, 3, 4, 6]]


def test_protected_tokens_go_last_and_by_their_scores():
    views = rows([3, 1, 2, 9], options="sinks=3", budget=2)
    assert oracle.forget(views, 2, 1) == [{0: 3, 1: 1, 2: 2, 3: 9}]
    assert left(views) == [[0, 2]]


def test_rows_that_share_a_budget_lose_the_lowest_of_all():
    views = rows([1, 2, 3, 4, 5], [10, 11, 0, 13, 14])
    assert oracle.forget(views, 8, 2, 2) == [{0: 1, 1: 2, 2: 3}, {0: 10, 1: 11, 2: 0}]  # the best two of a row are safe
    assert left(views) == [[1, 2, 3, 4], [0, 1, 3, 4]]


def test_the_safe_tokens_of_a_row_stay():
    views = rows([1, 2, 7, 6, 3, 4, 5], [10, 11, 12, 13, 9, 15, 16])
    oracle.forget(views, 8, 2, 2)
    assert left(views) == [[2, 3], [0, 1, 2, 3, 5, 6]]


def test_protected_tokens_are_the_safe_ones_first():
    views = rows([0, 5, 6, 7, 1], [9, 9, 9, 9, 9], options="scope=head,recent=1,sinks=1")
    oracle.forget(views, 5, 2, 2)
    assert left(views) == [[0, 4], [0, 3, 4]]  # of the equals in the second row the newest stays


def test_equals_of_several_rows_go_by_position_and_then_by_row():
    views = rows([1, 1, 1], [1, 1, 1], [1, 1, 1])
    oracle.forget(views, 5, 1, 1)
    assert left(views) == [[2], [1, 2], [1, 2]]


def test_rows_that_share_a_budget_wait_for_all_of_them():
    counts = [sum(len(row) for row in m.kept[0]) for m in run("random:scope=head,adaptive=0.3,every=2", 9, 4)]
    assert counts == [3, 6, 9, 12, 15, 12, 15, 12, 15]


def test_a_large_share_of_safe_tokens_keeps_rows_equal():
    for moment in run("random:scope=head,adaptive=0.99,every=2", 9, 4):  # 3 of 4 are safe
        assert all(len(row) >= min(3, len(moment.kept[0][0])) for row in moment.kept[0])


# Scores without attention


def test_window_and_random():
    assert scores(view("window", np.ones((3, 1, 1)), positions=[2, 5, 6])) == [2, 5, 6]
    seen = dict(keys=np.ones((2, 1, 1)), positions=[3, 4], layer=2, number=1)
    alike, apart = scores(view("random:seed=5", **seen)), scores(view("random:seed=5,apart=True", **seen))
    assert alike == [hashed((p, 0x9E3779B1), (1, 0x85EBCA77), (5, 0xC2B2AE3D)) for p in (3, 4)]
    assert apart == [hashed((p, 0x9E3779B1), (1, 0x85EBCA77), (5, 0xC2B2AE3D), (2, 0x27D4EB2F)) for p in (3, 4)]


def hashed(*products: tuple[int, int]) -> int:
    """The hash of a sum of products, in numpy's numbers of 32 bits, which wrap around."""
    with np.errstate(over="ignore"):
        x = np.uint32(0)
        for number, factor in products:
            x += np.uint32(number) * np.uint32(factor)
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
        return int(x ^ (x >> np.uint32(16)))


def test_knorm():
    assert scores(view("knorm", single([[3, 4], [0, 2]]))) == [-5, -2]
    assert scores(view("knorm", [[[3, 4], [0, 1]], [[0, 2], [0, 4]]])) == [-3, -3]  # the mean over KV heads


def test_keydiff():
    # Directions (1, 0), (1, 0) and (0, 1): the anchor lies along (2, 1).
    assert scores(view("keydiff", single([[2, 0], [5, 0], [0, 7]]))) == close(
        [-2 / math.sqrt(5), -2 / math.sqrt(5), -1 / math.sqrt(5)]
    )


def test_cur_takes_blocks_of_what_is_held():
    keys, values = single([[1, 0], [0, 1], [1, 1], [3, 0]]), single([[2, 0], [0, 4], [5, 0], [0, 0]])
    seen = view("cur:window=3", keys, values, positions=[2, 3, 15, 80])  # blocks {2, 3, 15} and {80}
    seen.row[3].value[0, 0] = 1
    assert scores(seen) == close([1 / 4 * 4 / 45, 1 / 4 * 16 / 45, 2 / 4 * 25 / 45, 1])


def test_lagkv():
    # Tokens 1 and 2 as seen from (0, 0) and (1, 2): their keys are (1, 1), of spread 0, and (1, 0), of sqrt(1/2). Their
    # values are spread the other way and more. Tokens 3 and 4 are spread equally, so the older comes first.
    keys = [[9, 9], [1, 2], [1, 0], [0, 0], [1, 2], [0, 0], [1, 2], [5, 5]]
    values = [[9, 9], [3, 0], [0, 0], [0, 0], [1, 1], [0, 0], [1, 1], [5, 5]]
    assert scores(view("lagkv:lag=2,sinks=1", single(keys), single(values))) == [1, 0.5, 0, 0, 0.5, 1, 1, 1]
    assert scores(view("lagkv:lag=2,sinks=1", single(keys))) == [1, 0, 0.5, 0, 0.5, 1, 1, 1]
    assert scores(view("lagkv:lag=4,sinks=1", single(keys))) == [1] * 8  # one full block of 7 tokens
    both = np.stack([keys, values], axis=1)
    assert scores(view("lagkv:lag=2,sinks=1", both)) == [1, 0.25, 0.25, 0, 0.5, 1, 1, 1]  # the mean of ranks


def test_lagkv_takes_blocks_of_what_is_held():
    keys = single([[1, 2], [1, 0], [0, 0], [1, 2]])
    assert scores(view("lagkv:lag=2,sinks=3", keys, positions=[3, 10, 20, 21])) == [0, 0.5, 1, 1]


# Scores of attention


def test_tova():
    assert scores(attended(view("tova", np.ones((2, 1, 1))), [0.4, 0.6], [0.2, 0.8])) == close([0.3, 0.7])


def grown(policy: str, *probs: list[list[float]], lengths: Any = None, **given: Any) -> View:
    """A row of tokens 0, 1, ... after the queries gave them probs, by time and query head."""
    lengths = np.ones(len(probs)) if lengths is None else np.asarray(lengths, float)
    seen = view(policy, single(lengths[:, None]), group_size=2, t=0, **given)
    row, seen.row = seen.row, []
    for t, memory in enumerate(row):
        seen.row.append(memory)
        seen.t = t
        attended(seen, *probs[t])
    return seen


PROBS = [[[1.0], [1.0]], [[0.4, 0.6], [0.2, 0.8]], [[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]]]


def test_h2o():
    assert scores(grown("h2o", *PROBS)) == close([2 + 0.6 + 0.6, 1.4 + 0.5, 0.9])
    assert scores(grown("h2o:normalize=True", *PROBS)) == close([3.2 / 3, 1.9 / 2, 0.9])
    # Values of lengths 3, 2, 1: shares of (12, 12) and (6, 16), then of (3, 4, 7) and (15, 6, 2).
    weighed = [2 + 12 / 24 + 6 / 22 + 3 / 14 + 15 / 23, 12 / 24 + 16 / 22 + 4 / 14 + 6 / 23, 7 / 14 + 2 / 23]
    assert scores(grown("h2o:weigh=True", *PROBS, lengths=[3, 2, 1])) == close(weighed)
    both = scores(grown("h2o:weigh=True,normalize=True", *PROBS, lengths=[3, 2, 1]))
    assert both == close([weighed[0] / 3, weighed[1] / 2, weighed[2]])


def test_a2sf():
    assert scores(grown("a2sf:decay=0.5", *PROBS)) == close([(2 / 2 + 0.6) / 2 + 0.6, 1.4 / 2 + 0.5, 0.9])


def test_roco():
    received = [[0.5] * 7, [0.1, 0.5] * 3, [0.4] * 5, [0.1, 0.3, 0.3, 0.1], [0.9] * 3, [0.0, 1.0], [0.7]]
    seen = view("roco:recent=0,sinks=1", np.ones((7, 1, 1)), budget=6)
    for memory, of_token in zip(seen.row, received, strict=True):
        memory.received = of_token
    inf = math.inf
    # 6 - 1 - 1 = 4 candidates: deviations are 0.2, 0, 0.1, 0, 0.5, 0 from token 1 on.
    assert scores(seen) == close([inf, inf, 0.4, 0.2, 0.9, inf, 0.7])
    seen.budget = 3  # 3 - 0 - 1 = 2 candidates, the older of equals first
    for memory, of_token in zip(seen.row, received, strict=True):
        memory.received = [0.5] * len(of_token)
    assert scores(seen) == close([inf, 0.5, 0.5, inf, inf, inf, inf])
    seen.rule.every, seen.rule.recent = 3, 4
    assert scores(seen) == close([inf, 0.5, 0.5, inf, inf, inf, inf])  # no more than are not protected


def test_keyformer():
    """A share is in proportion to (a / -ln u) ** (1 / tau)."""
    seen = grown("keyformer:seed=3,horizon=10,start=1.0,end=3.0", *PROBS, layer=2)
    expected = np.zeros(3)
    for t, of_heads in enumerate(PROBS):
        for n, probs in enumerate(of_heads):
            worth = []
            for j, prob in enumerate(probs):
                terms = (j, 0x9E3779B1), (n, 0x85EBCA77), (t, 0x27D4EB2F), (2, 0x165667B1), (3, 0xC2B2AE3D)
                u = (hashed(*terms) + 0.5) / 2**32
                worth.append((prob / -math.log(u)) ** (1 / (1 + t / 5)))
            expected[: t + 1] += np.array(worth) / sum(worth)
    assert scores(seen) == pytest.approx(expected.tolist(), rel=1e-9)


def test_keyformer_is_no_hotter_than_at_its_end(monkeypatch):
    monkeypatch.setattr(oracle_policies, "hash32", lambda x: 0x5E2D58D8)  # u = 1 / e: no noise
    probs = [[[1.0], [1.0]], [[0.2, 0.8], [0.5, 0.5]]]
    assert scores(grown("keyformer:horizon=1", *probs)) == pytest.approx([2 + 1 / 3 + 1 / 2, 2 / 3 + 1 / 2])


def test_keyformer_has_no_infinite_noise(monkeypatch):
    monkeypatch.setattr(oracle_policies, "hash32", lambda x: 2**32 - 1)
    noise = oracle_policies.gumbel(view("keyformer", np.ones((1, 1, 1))), 0, 0)
    assert noise == pytest.approx(24 * math.log(2))


def test_the_hash():
    assert [hash32(x) for x in (0, 1, 2**32 + 1)] == [0, hashed((1, 1)), hashed((1, 1))]


# Scores with an observation window


def test_snapkv():
    # Queries 4 and 5 see sums of 20 and 40: on average a token of weight w is given w * 3 / 80.
    seen = view("snapkv:recent=2,kernel=3", logarithmic(WEIGHTS), queries=[[[1]]] * 6)
    assert scores(seen) == close([3 / 80, 6 / 80, 9 / 80, 7 / 80, 0, 0])
    seen.rule.options.kernel = 5
    assert scores(seen) == close([w * 3 / 80 / 5 for w in (6, 10, 10, 9)] + [0, 0])
    seen.rule.recent = 6
    assert scores(seen) == [0] * 6  # nothing is distant


def test_snapkv_asks_the_window_though_its_tokens_are_gone():
    # Tokens 1 and 4 are gone. Query 4 sees weights 1, 3, 4 and query 5 also 20.
    keys = logarithmic([1, 3, 4, 20])
    seen = view("snapkv:recent=2,kernel=1", keys, queries=[[[1]]] * 6, positions=[0, 2, 3, 5])
    assert scores(seen) == close([w * (1 / 8 + 1 / 28) / 2 for w in (1, 3, 4)] + [0])


def test_snapkv_takes_the_mean_of_the_group():
    seen = view("snapkv:recent=1,kernel=1", logarithmic([1, 3]), queries=[[[1], [0]]] * 2, group_size=2)
    assert scores(seen) == close([(1 / 4 + 1 / 2) / 2, 0])


def test_snapkvd():
    seen = view("snapkvd:recent=2,kernel=3", logarithmic(WEIGHTS), queries=[[[1]]] * 6)
    assert scores(seen) == close([0.2, 0.3, 0.4, 0.4, 0, 0])
    # The greater of w and 1 / w.
    pair = view("snapkvd:recent=1,kernel=1", logarithmic([1, 2, 1 / 4, 8, 9]), queries=[[[1], [-1]]] * 5, group_size=2)
    assert scores(pair) == close([1 / 15, 2 / 15, 4 / 15, 8 / 15, 0])


def test_the_similarity_of_four_keys():
    # Rows of cosines: (0, 1, 0, .8), (1, 0, 0, .8), (0, 0, 0, .6), (.8, .8, .6, 0). The newest above .5 is dropped:
    # token 3 for the first three, token 2 for the last.
    keys = np.array([[1, 0], [2, 0], [0, 1], [4, 3]], float)
    assert oracle_policies.similarity(keys).tolist() == close([1.8 / 4, 1.8 / 4, 0, 0])


def test_the_oldest_is_dropped_where_none_is_similar():
    keys = np.array([[1, 0, 0], [0.3, 1, 0], [0.4, 0, 1]], float)
    a, b, c = 0.3 / math.hypot(0.3, 1), 0.4 / math.hypot(0.4, 1), 0.12 / (math.hypot(0.3, 1) * math.hypot(0.4, 1))
    assert oracle_policies.similarity(keys).tolist() == close([0, (a + c) / 3, (b + c) / 3])


def test_rkv():
    keys = [[1, 0], [2, 0], [0, 1], [4, 3]]
    seen = view("rkv:recent=1,kernel=1,mix=0.2", single(keys), queries=[[[0, math.sqrt(2) * math.log(2)]]] * 4)
    # The query gives the three distant tokens 1, 1, 2 of 4.
    most, least = (math.exp(x) / (2 * math.exp(0.45) + 2) for x in (0.45, 0))
    expected = [0.2 / 4 - 0.8 * most, 0.2 / 4 - 0.8 * most, 0.2 / 2 - 0.8 * least, 0]
    assert scores(seen) == close(expected)


def test_gkv_remembers_from_cut_to_cut():
    seen = view("gkv:recent=2", logarithmic(WEIGHTS), queries=[[[1]]] * 6)
    assert scores(seen) == close([0.25, 0.5, 0.75, 1, 0, 0])
    assert [memory.tally for memory in seen.row] == close([0.25, 0.5, 0.75, 1, 0, 0])
    seen.queries[4:] = [np.zeros((1, 1))] * 2  # now all are given the same
    seen.row[0].tally = 2
    assert scores(seen) == close([1.6, 1, 1, 1, 0, 0])
    seen.queries[4:] = [-np.ones((1, 1))] * 2
    assert scores(seen) == close([1.28, 0.8, 0.8, 0.8, 0, 0])  # 1, 1/2, 1/3, 1/4 are less


def test_gkv_takes_the_greatest_of_the_group_and_the_mean_of_kv_heads():
    pair = view("gkv:recent=1", logarithmic([1, 3, 4]), queries=[[[1], [-1]]] * 3, group_size=2)
    # 1/8, 3/8 and (1, 1/3) / (19/12): the greater ones are 12/19 and 3/8.
    assert scores(pair) == close([1, 3 / 8 * 19 / 12, 0])
    keys = np.concatenate([logarithmic([1, 4, 5]), logarithmic([1, 2, 7])], axis=1)
    two = view("gkv:recent=1,scope=layer", keys, queries=[[[1], [1]]] * 3)
    assert scores(two) == close([(1 / 4 + 1 / 2) / 2, 1, 0])


def test_gkv_changes_nothing_between_cuts():
    seen = view("gkv:recent=2", logarithmic(WEIGHTS), queries=[[[1]]] * 6, budget=6)
    assert oracle.forget([seen], 6, 1) == [None] and seen.row[0].tally == 0


def test_morphkv_leaves_out_the_newest_query():
    queries = [[[0]]] * 3 + [[[1]], [[2]], [[100]]]  # of those the second and third last count
    seen = view("morphkv:recent=2", logarithmic(WEIGHTS), queries=queries)
    assert scores(seen) == close([1 / 6, 2 / 6, 9 / 14, 0, 0, 0])
    seen.rule.options.fuse = "sum"
    assert scores(seen) == close([10 / 42, 26 / 42, 48 / 42, 0, 0, 0])


def test_morphkv_adds_the_logits_of_the_group():
    seen = view("morphkv:recent=1", logarithmic([1, 2, 9, 9]), queries=[[[1], [1]]] * 4, group_size=2)
    assert scores(seen) == close([1 / 5, 4 / 5, 0, 0])


# Scores of queries yet to come

OMEGA = 0.3


def turn(heads: np.ndarray, place: Any) -> np.ndarray:
    """Heads of width 2 as complex numbers, turned."""
    angle = OMEGA * np.asarray(place)[..., None]
    turned = (heads[..., 0] + 1j * heads[..., 1]) * np.exp(1j * angle)
    return np.stack([turned.real, turned.imag], axis=-1)


def rotating(policy: str, positions: list[int], t: int, **given: Any) -> View:
    """A row of one KV head of width 2 and two query heads, all random, whose heads rotate."""
    draw = np.random.default_rng(1).normal
    keys, values = draw(size=(len(positions), 1, 2)), draw(size=(len(positions), 1, 2))
    queries = draw(size=(t + 1, 2, 2)) + 0.5
    rest = dict(turn=turn, frequencies=np.array([OMEGA]), group_size=2) | given
    return view(policy, keys, values, queries, positions, t, **rest)


@pytest.mark.parametrize("absolute", [True, False])
def test_expected_attention(absolute):
    """The mean rotation is a complex number: the sum of a geometric series."""
    seen = rotating("expectedattention:sinks=2,future=4,epsilon=0.1", [0, 2, 3, 6], 6, absolute=absolute)
    step = cmath.exp(1j * OMEGA)
    mean_turn = step**7 * (1 - step**4) / (1 - step) / 4
    probs = []
    for n in range(2):
        queries = np.array([complex(*query[n]) for query in seen.queries[2:]])
        ahead = mean_turn * queries.mean()
        apart = mean_turn * (queries - queries.mean())
        logits = []
        for memory in seen.row[1:]:
            key = complex(*memory.key[0]) * step**memory.position
            products = [(key * other.conjugate()).real for other in apart]
            logits.append((key * ahead.conjugate()).real / math.sqrt(2) + np.mean(np.square(products)) / 4)
        weights = np.exp(logits)
        probs.append(weights / weights.sum())
    lengths = [math.hypot(*memory.value[0]) for memory in seen.row]
    expected = np.array([0, *np.mean(probs, axis=0)]) + 0.1
    assert scores(seen) == pytest.approx((expected * lengths).tolist(), rel=1e-9)


def test_expected_attention_of_no_queries():
    seen = rotating("expectedattention:sinks=3", [0, 1, 2], 2)
    assert scores(seen) == [0, 0, 0]  # nothing is past the sinks
    assert [np.abs(x).max() for x in oracle_policies.moments(np.zeros((0, 2)))] == [0, 0]


@pytest.mark.parametrize("pinned", [0, 2])
def test_triattention(pinned):
    """The first term is the logit of the mean query, both rotated; by the true distance."""
    seen = rotating("triattention", [0, 2, 3, 6], 6, pinned=pinned, lengthening=1.5, absolute=False)
    of_heads = []
    for n in range(2):
        queries = np.array([complex(*query[n]) for query in seen.queries])
        mean = queries.mean()
        raw = []
        for memory in seen.row:
            key = complex(*memory.key[0])
            there = key * cmath.exp(1j * OMEGA * memory.position)
            ahead = [mean * cmath.exp(1j * OMEGA * (6 + 2**power)) for power in range(17)]
            logit = np.mean([(query * there.conjugate()).real for query in ahead])
            raw.append(2.25 * (logit + (np.mean(np.abs(queries)) - abs(mean)) * abs(key)))
        counted = np.array(raw[1:] if pinned else raw)
        of_heads.append((raw - counted.mean()) / (counted.std() + 1e-6))
    assert scores(seen) == pytest.approx(np.max(of_heads, axis=0).tolist(), rel=1e-7)


def test_keys_are_as_cached():
    absolute, bare = (rotating("knorm", [0, 2], 2, absolute=absolute) for absolute in (True, False))
    assert np.allclose(absolute.keys(0), turn(bare.keys(0)[:, None], [0, 2])[:, 0])
    assert (bare.keys(0) == bare.bare_keys(0)).all()
    # A logit is that of the distance in the text, or of the heads as they are.
    query, key = complex(*bare.queries[1][1]), complex(*bare.row[1].key[0])
    turned = (query * (key * cmath.exp(1j * OMEGA)).conjugate()).real
    assert absolute.products(1, 0)[1, 1] == pytest.approx(turned / math.sqrt(2))
    assert bare.products(1, 0)[1, 1] == pytest.approx((query * key.conjugate()).real / math.sqrt(2))


# The recurrence and the scores together


@pytest.mark.parametrize("positions", ["absolute", "cache"])
@pytest.mark.parametrize("text", ["snapkv:recent=3,kernel=1", "a2sf:recent=0", "tova:scope=layer"])
def test_what_the_recurrence_tells_the_policies(text, positions):
    """The attention of the newest query, had again from queries and keys, is what the memories noted of it."""
    seen: list[View] = []
    name = text.partition(":")[0]

    def spy(view: View) -> Any:
        seen.append(view)
        for index, head in enumerate(view.heads):
            if positions == "absolute":  # else the rotation is that of the cache
                again = oracle_policies.until(view, view.t, head)
                noted = view.attention[index * view.group_size : (index + 1) * view.group_size]
                np.testing.assert_allclose(again, noted, atol=1e-12)
        assert len(view.queries) == view.t + 1
        return score(view)

    score = SCORES[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(oracle.SCORES, name, spy)
        run(text, 12, 5, positions=positions)
    assert len(seen) == 7 * len({view.number for view in seen})


EVERY_POLICY = [name for name in oracle_policies.POLICIES if name not in ("own", "full")]
SMALL = {
    "snapkv": "recent=3,kernel=3,",
    "snapkvd": "recent=3,",
    "rkv": "recent=3,",
    "gkv": "recent=3,",
    "morphkv": "recent=3,",
    "lagkv": "lag=3,",
    "a2sf": "recent=2,",
    "roco": "recent=2,",
}


@pytest.mark.parametrize("name", EVERY_POLICY)
def test_a_run_of_every_policy_keeps_to_its_budget(name):
    moments = run(f"{name}:{SMALL.get(name, '')}every=3,scope=head,adaptive=0.3", 18, 6, prompt=2)
    for t, moment in enumerate(moments):
        kept = moment.kept[0]
        assert sum(len(row) for row in kept) <= min(3 * (t + 1), 3 * 6 + 3 * 2)
        assert all(row == sorted(set(row)) and row[-1] <= t for row in kept if row)
    cuts = [of_row for moment in moments for of_row in moment.scores[0] if of_row]
    assert cuts and not np.isnan([score for of_row in cuts for score in of_row.values()]).any()
