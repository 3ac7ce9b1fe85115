"""What the numbers say, in sentences: nothing where two policies are within two standard errors of each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from experiments.common.claims import AGREES, DISAGREES, UNDECIDED
from experiments.comparison.differences import Found, alone, losses, misses, reference_of
from experiments.comparison.policies import RANDOM, SELDOM, UNSCORED, cut, every_of, held, kind_of
from experiments.comparison.tables import ORDERS
from msrnn_jax.io.journal import Line

NAMED = 6  # policies that a sentence names; of more it gives the number


def findings_of(lines: Sequence[Line], cases: Sequence[Line]) -> list[str]:
    """Sentences, one for each thing that is told.

    A policy is better than another at a budget where its number is at least two standard errors lower on the same
    documents (of few documents more, by Student's t; see `claims`).
    """
    found = losses(lines)
    groups = sorted({every_of(policy) for policy, _ in found.draws})
    said = [_bests(found, every, "The lowest loss") for every in groups]
    said += [_random(found, every) for every in groups]
    said += _cuts(found)
    for order in ORDERS:
        asked = misses(cases, order)
        said += [_bests(asked, every, f"Most needles found, question {order} the text") for every in groups]
    return [one for one in said if one]


def _budgets(found: Found) -> list[int]:
    return sorted({budget for _, budget in found.draws})


def when(every: int) -> str:
    """How often policies cut, in words."""
    return "at every token" if every == 1 else f"every {every} tokens"


def _bests(found: Found, every: int, what: str) -> str:
    """The best policy of a group at every budget, with those that are not told to be worse."""
    best = {budget: _best(found, found.policies(budget, every), budget) for budget in _budgets(found)}
    told = "; ".join(f"k = {budget} {one}" for budget, one in best.items() if one)
    return f"{what}, cut {when(every)}: {told}." if told else ""


def _best(found: Found, policies: Sequence[str], budget: int) -> str:
    if len(policies) < 2:
        return ""
    first = min(policies, key=lambda policy: found.above((policy, budget), (reference_of(policy), budget)))
    parts = {other: found.better((first, budget), (other, budget)) for other in policies if other != first}
    near = [kind_of(other).label for other, part in parts.items() if part is None or part.outcome != AGREES]
    return f"{kind_of(first).label}, " + (f"not told from {_listed(near)}" if near else "and all others are worse")


def _listed(names: Sequence[str]) -> str:
    if len(names) > NAMED:
        return f"{len(names)} others"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _random(found: Found, every: int) -> str:
    """Whether choosing by lot, but for the first tokens, is as good as choosing by a score."""
    random = cut(f"{RANDOM},sinks=32", every)
    counts = {}
    for budget in _budgets(found):
        policies = found.policies(budget, every)
        scored = [policy for policy in policies if kind_of(policy).family not in UNSCORED]
        if random in policies and scored:
            counts[budget] = _count(found, [((policy, budget), (random, budget)) for policy in scored])
    counts = {budget: count for budget, count in counts.items() if count.total()}
    if not counts:
        return ""
    if any(count[UNDECIDED] > count.total() / 2 for count in counts.values()):
        verdict = "is not told from most scored policies at some size"
    elif not any(count[AGREES] for count in counts.values()):
        verdict = "is as good as scored policies"
    elif all(count[AGREES] > count.total() / 2 for count in counts.values()):
        verdict = "is not as good as scored policies"
    else:
        verdict = "is not as good as some scored policies"
    told = "; ".join(
        f"at k = {budget}, {count[AGREES]} of {count.total()} are better, {count[DISAGREES]} worse, "
        f"{count[UNDECIDED]} not told apart"
        for budget, count in counts.items()
    )
    return f"Random with the first 32 tokens kept {verdict}, cut {when(every)}: {told}."


def _cuts(found: Found) -> Iterator[str]:
    """Whether it costs quality to cut seldom: at the same budget, and with about as many tokens held."""
    seldom = {policy for policy, _ in found.draws if every_of(policy) == SELDOM}
    for budget in _budgets(found):
        for other in _budgets(found):
            alike = abs(other - held(budget, SELDOM)) <= 1
            if budget != other and not alike:
                continue
            pairs = [((policy, budget), (alone(policy), other)) for policy in seldom]
            count = _count(found, [pair for pair in pairs if all(one in found.draws for one in pair)])
            if count.total():
                where = f"the same k = {budget}" if budget == other else f"k = {other}, with about as many tokens held"
                yield (
                    f"Cutting every {SELDOM} tokens at k = {budget} (mean {held(budget, SELDOM):,.1f} held), against "
                    f"every token at {where}: of {count.total()} policies {count[DISAGREES]} lose, {count[AGREES]} "
                    f"gain, {count[UNDECIDED]} are not told apart."
                )


def _count(found: Found, pairs: Sequence[tuple]) -> Counter[str]:
    """How often the first of a pair is better (`agrees`), worse (`disagrees`) or neither."""
    parts = [found.better(first, second) for first, second in pairs]
    return Counter(part.outcome for part in parts if part is not None)
