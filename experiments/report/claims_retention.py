"""Claims on which tokens survive: Figures 8 and 9, Table 5."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from experiments import published
from experiments.estimates import Estimate, mean, minus, times
from experiments.paired import mean_of
from experiments.report.draws import common, select, values_of
from experiments.report.records import Records
from experiments.report.verdicts import Claim, Part, Verdict, above, below, every, inside, not_measured
from experiments.retention.tables import life_of
from msrnn_jax.journal import Line

NAME = "retention"
NAMES = {"POS": "possessive endings", "''": "closing quotes", "newline": "line breaks", "$": "currency signs"}
NAMES |= {")": "closing brackets", ".": "full stops", ",": "commas", "NNPS": "plural proper nouns", "CD": "numbers"}
NAMES |= {"WP$": "possessive wh-pronouns", "NN": "singular nouns", "PRP$": "possessive pronouns", "DT": "determiners"}
NAMES |= {"MD": "modals", "TO": "uses of the word to", "IN": "prepositions"}

Compare = Callable[[Sequence[Line], str, int], Part | None]  # lines, their name, the paper's budget


def at_all(
    compare: Compare, unit: str, records: Records, note: str = "", sizes: Sequence[int] = published.LIFE_BUDGETS
) -> Verdict:
    """Decides a claim on TOVA at each of the paper's budgets, as shares of the segment."""
    lines = records.lines(NAME)
    if not lines:
        return not_measured(records.why(NAME))
    segment = values_of(lines, "segment")[-1]
    parts, missing = [], []
    for size in sizes:
        budget = size * segment // published.CONTEXT
        (found,) = common(select(lines, policy="tova", budget=budget, segment=segment))
        part = compare(found, f"k = {budget}", size) if found else None
        if part is None:
            missing.append(f"k = {budget}")
        else:
            parts.append(part)
    return every(parts, unit, note, missing)


def recent(lines: Sequence[Line], what: str, size: int) -> Part:
    """Whether 73 to 76 % of what is kept is recent."""
    del size
    return inside(what, mean_of(lines, "recent"), *published.RECENT)


def first_stays(lines: Sequence[Line], what: str, size: int) -> Part:
    """Whether the first token is held at the end, in nearly all layers."""
    del size
    return above(what, mean([line["first_held"][0] for line in lines]), 0.95, 1.0)


def others_go(lines: Sequence[Line], what: str, size: int) -> Part:
    """Whether the tokens after the first live less than half as long as it does."""
    del size
    others = mean([_mean(line["first"][1:25]) for line in lines])
    return below(what, minus(others, times(0.5, mean([line["first"][0] for line in lines]))), 0.0)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def lives(tag: str, longer: bool, lines: Sequence[Line], what: str, size: int) -> Part | None:
    """Whether tokens of a tag are kept longer, or less long, than the average one."""
    mine, average = _life(lines, tag), mean_of(lines, "life")
    if mine is None:
        return None
    ours, all_ = published.life(tag, size), published.life(None, size)
    assert ours and all_
    return (above if longer else below)(what, minus(mine, average), 0.0, ours - all_)


def _life(lines: Sequence[Line], tag: str) -> Estimate | None:
    return life_of(lines, tag) if any(tag in line["tags"] for line in lines) else None


def longest(lines: Sequence[Line], what: str, size: int) -> Part | None:
    """Whether possessive endings are kept longer than the tokens of any other tag of the paper's list."""
    mine = _life(lines, "POS")
    others = {tag: _life(lines, tag) for tag in published.LIVES if tag != "POS"}
    known = {tag: one for tag, one in others.items() if one is not None}
    if mine is None or not known:
        return None
    rival = max(known, key=lambda tag: known[tag].value)
    paper = [published.life(tag, size) or 0.0 for tag in ("POS", *others)]
    return above(f"{what}, next: {NAMES[rival]}", minus(mine, known[rival]), 0.0, paper[0] - max(paper[1:]))


def average(lines: Sequence[Line], what: str, size: int) -> Part | None:
    """Whether the mean over all tokens is the paper's, which is rounded to a step."""
    paper, mine = published.life(None, size), mean_of(lines, "life")
    scale = lines[0]["setting"]["segment"] / published.CONTEXT
    assert paper
    return inside(what, times(1 / scale, mine), paper - 0.5, paper + 0.5, paper)


_COUNTED = "the budget alone fixes it: what is kept, summed over time, is what is lived; this checks the recording"


def _claims() -> Iterator[Claim]:
    yield Claim(
        "3.6", "Recent tokens are 73 to 76 % of what TOVA keeps", partial(at_all, recent, "share of what is kept")
    )
    yield Claim(
        "3.6",
        "The first token is kept to the end at every k (in at least 95 % of layers)",
        partial(at_all, first_stays, "share of layers"),
    )
    yield Claim(
        "3.6",
        "Tokens 1 to 24 are dropped far earlier (in less than half of the first one's time)",
        partial(at_all, others_go, "steps above half of the first token's"),
    )
    yield Claim(
        "3.6",
        "Tokens are kept for 249, 481, 897 and 1,537 steps on average",
        partial(at_all, average, "steps, of a segment of 4,096", note=_COUNTED),
    )
    yield Claim(
        "3.6",
        "Possessive endings are kept longest of all tags, at k up to 1/4",
        partial(at_all, longest, "steps more than the next tag", sizes=published.LIFE_BUDGETS[:-1]),
    )
    for tag, paper in published.LIVES.items():
        longer = paper[0] > published.LIFE[0]
        text = f"{NAMES[tag][0].upper()}{NAMES[tag][1:]} ({tag}) are kept "
        text += "longer than the average token" if longer else "less long than the average token"
        yield Claim("3.6", text, partial(at_all, partial(lives, tag, longer), "steps more than the average token"))


CLAIMS = tuple(_claims())
