"""Claims on which tokens survive: Figures 8 and 9, Table 5; and the section of the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from experiments.common import published
from experiments.common.claims import Claim, Part, Verdict, above, below, every, inside, not_measured
from experiments.common.draws import common, select, values_of
from experiments.common.estimates import Estimate, by, columns, mean, mean_of, minus, times
from experiments.common.figures import (
    COLORS,
    GREY,
    Column,
    Grid,
    Lines,
    Picture,
    Row,
    Section,
    canvas,
    legend,
    legend_below,
    ours,
    png,
)
from experiments.common.records import Records
from experiments.retention.maps import unpack
from experiments.retention.tables import life_of, summarise
from experiments.retention.tags import TAGS
from msrnn_jax.io.journal import Line

NAME = "retention"
Compare = Callable[[Sequence[Line], str, int], Part | None]  # lines, their name, the paper's budget
_COUNTED = "the budget alone fixes it: what is kept, summed over time, is what is lived; this checks the recording"
FIRST = 25  # tokens of a text that Figure 9 follows
PIXELS = 220  # of a map, a side
COLUMNS = (
    Column("policy", "policy"),
    Column("budget", "k"),
    Column("books", "texts"),
    Column("recent", "recent, %", 1, 100.0),
    Column("paper_recent", "paper, %"),
    Column("first_held", "first token held at the end, % of layers", 1, 100.0),
    Column("first", "steps of the first token", 0),
    Column("others_life", "of tokens 1 to 24", 0),
    Column("life", "of all tokens", 0),
    Column("paper_life", "paper", 0),
    Column("lost", "attention on what was just freed, %", 4, 100.0),
)


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
    return above(f"{what}, next: {TAGS[rival].name}", minus(mine, known[rival]), 0.0, paper[0] - max(paper[1:]))


def average(lines: Sequence[Line], what: str, size: int) -> Part | None:
    """Whether the mean over all tokens is the paper's, which is rounded to a step."""
    paper, mine = published.life(None, size), mean_of(lines, "life")
    scale = lines[0]["setting"]["segment"] / published.CONTEXT
    assert paper
    return inside(what, times(1 / scale, mine), paper - 0.5, paper + 0.5, paper)


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
        name = TAGS[tag].name
        text = f"{name[0].upper()}{name[1:]} ({tag}) are kept "
        text += "longer than the average token" if longer else "less long than the average token"
        yield Claim("3.6", text, partial(at_all, partial(lives, tag, longer), "steps more than the average token"))


CLAIMS = tuple(_claims())


def make(records: Records) -> Section | None:
    """The section of these results, and of the records that were written whole; None where there are none."""
    lines = records.lines(NAME)
    if not lines:
        return None
    rows = rows_of(lines)
    lives = lives_of(rows)
    shown = [Column("words", "part of speech"), Column("tag", "Penn tag"), Column("count", "tokens")]
    for budget in sorted({row["budget"] for row in lives}):
        shown += [Column(f"life_{budget}", f"k = {budget}", 0), Column(f"paper_{budget}", "paper", 0)]
    grids = [
        Grid("What is kept (Figure 9)", COLUMNS, rows),
        Grid("Mean steps that tokens are kept under TOVA, by part of speech (Table 5)", shown, _by_tag(lives)),
    ]
    pictures = [_figure_9(rows), _table_5(lives)]
    mapped = _figure_8(records.maps())
    about = (
        "One segment of each text is read from an empty state. Recent are tokens among the last k; a token's steps are "
        "those from its own to when it is freed or the text ends, a mean over layers. Parts of speech are those of the "
        "Penn treebank; a token has that of the word or mark that it is a part of."
    )
    return Section(NAME, "Which tokens survive (Figures 8 and 9, Table 5)", about, grids, [*mapped, *pictures])


def rows_of(lines: Lines) -> list[Row]:
    """One row for every policy and budget."""
    low, high = published.RECENT
    groups, rows = by(lines, "policy", "budget"), []
    for row in summarise(lines):
        some, is_tova = groups[row["policy"], row["budget"]], row["policy"] == "tova"
        size = row["budget"] * published.CONTEXT // some[0]["setting"]["segment"]
        rows.append(
            {
                **row,
                **columns("others_life", mean([_mean_of_known(line["first"][1:FIRST]) for line in some])),
                "size": size,  # of the paper's context
                "paper_recent": f"{100 * low:.0f} to {100 * high:.0f}" if is_tova else None,
                "paper_life": published.life(None, size) if is_tova else None,
            }
        )
    return rows


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def lives_of(rows: Sequence[Row]) -> list[Row]:
    """One row for every tag and budget under TOVA."""
    return [
        {
            **{"tag": tag, "budget": row["budget"], "count": found["tokens"]},
            **{"life": found["life"], "life_stderr": found["life_stderr"]},
            "paper": published.life(tag, row["size"]),
        }
        for row in rows
        if row["policy"] == "tova"
        for tag, found in row["tags"].items()
    ]


def _by_tag(lives: Sequence[Row]) -> list[Row]:
    rows: dict[str, dict] = {}
    for row in lives:
        one = rows.setdefault(row["tag"], {"words": spell(row["tag"]), "tag": row["tag"], "count": row["count"]})
        budget = row["budget"]
        one |= {
            f"life_{budget}": row["life"],
            f"life_{budget}_stderr": row["life_stderr"],
            f"paper_{budget}": row["paper"],
        }
    most = max((row["budget"] for row in lives), default=0)
    return sorted(rows.values(), key=lambda row: -(row.get(f"life_{most}") or 0.0))


def held_map(freed: Int[np.ndarray, " T"], steps: Int[np.ndarray, " P"]) -> Bool[np.ndarray, "P P"]:
    """Which of the tokens read at some steps are held after each of them: [token, step].

    Args:
      freed: as in `unpack`, of a layer.
    """
    born, end = steps[:, None], freed[steps][:, None]
    return (born <= steps[None]) & (steps[None] < end)


def _figure_8(maps: Lines) -> list[Picture]:
    """The first map of TOVA, of four layers."""
    mapped = [line for line in maps if line["setting"]["policy"] == "tova"]
    if not mapped:
        return []
    line = mapped[0]
    freed = unpack(line)[:, 0]  # [L, T]
    layers = sorted({0, len(freed) // 3, 2 * len(freed) // 3, len(freed) - 1})
    figure, panels = canvas(len(layers), width=3.2, height=3.4)
    steps = np.unique(np.linspace(0, freed.shape[1] - 1, PIXELS).astype(int))
    for axes, layer in zip(panels, layers, strict=True):
        held = held_map(freed[layer], steps)
        edge = int(steps[-1])
        axes.imshow(
            held, cmap="Blues", origin="lower", aspect="auto", extent=(0, edge, 0, edge), interpolation="nearest"
        )
        axes.grid(False)
        axes.set_title(f"layer {layer}")
        axes.set_xlabel("step")
    panels[0].set_ylabel("token")
    return [
        Picture(
            "figure_8",
            f"Figure 8: which tokens are held at every step, k = {line['setting']['budget']}, one text, four layers.",
            "Dots below the diagonal, one for every token that a step can still see: recent ones and old",
            png(figure),
        )
    ]


def _figure_9(rows: Sequence[Row]) -> Picture:
    mine = sorted((row for row in rows if row["policy"] == "tova"), key=lambda row: row["budget"])
    figure, (left, right) = canvas(2, width=5.2, height=3.8)
    for number, row in enumerate(mine):
        points = [(place, *one) for place, one in enumerate(row["first_steps"][:FIRST])]
        look: dict[str, Any] = {"color": f"C{number}"}
        ours(left, "tova", points, markersize=3, label=f"k = {row['budget']}", **look)
        error = row["recent_stderr"]
        right.bar(number, 100 * row["recent"], yerr=0.0 if error != error else 100 * error, capsize=2, **look)
    left.set_xlabel("token")
    left.set_ylabel("steps kept, mean over layers")
    left.set_ylim(0, 1.3 * left.get_ylim()[1])  # room for the legend
    legend(left, ncols=2)
    low, high = (100 * one for one in published.RECENT)
    for bound in (low, high):
        right.axhline(bound, color=GREY, linestyle="--", linewidth=1)
    right.plot([], [], color=GREY, linestyle="--", linewidth=1, label=f"paper: {low:.0f} to {high:.0f} %")
    right.set_xticks(range(len(mine)), [f"k = {row['budget']}" for row in mine])
    right.set_ylabel("recent tokens, % of those kept")
    right.set_ylim(0, 118)  # room for the legend
    legend(right, loc="upper left")
    return Picture(
        "figure_9",
        "Figure 9: how long the first 25 tokens are kept under TOVA; on the right, how much of what is kept is recent.",
        "Steps kept by place in the text, a line for each multi-state size, and bars of the share of recent tokens",
        png(figure),
    )


def spell(tag: str) -> str:
    """A part of speech in plain words, with an example; a tag that has none stays."""
    return f"{TAGS[tag].name}: {TAGS[tag].example}" if tag in TAGS else tag


def _table_5(lives: Sequence[Row]) -> Picture:
    budgets = sorted({row["budget"] for row in lives}) or [0]
    known = [row for row in lives if row["paper"] is not None]
    tags = [row["tag"] for row in sorted(known, key=lambda row: row["paper"]) if row["budget"] == budgets[0]]
    figure, panels = canvas(len(budgets), width=2.0 + 3.0 / len(budgets), height=5.6)  # 3 inches for the words
    for axes, budget in zip(panels, budgets, strict=True):
        mine = {row["tag"]: row for row in known if row["budget"] == budget}
        shown = [tag for tag in tags if tag in mine]
        places, lived = [tags.index(tag) for tag in shown], [mine[tag]["life"] for tag in shown]
        errors = [
            0.0 if mine[tag]["life_stderr"] != mine[tag]["life_stderr"] else mine[tag]["life_stderr"] for tag in shown
        ]
        axes.errorbar(lived, places, xerr=errors, fmt="o", capsize=2, color=COLORS["tova"], label="ours")
        theirs = [mine[tag]["paper"] for tag in shown]
        axes.plot(theirs, places, "o", color=GREY, markerfacecolor="none", zorder=1, label="paper, LLaMA-2-7B")
        axes.set_xlabel("steps kept")
        axes.set_title(f"k = {budget}")
        axes.set_yticks(range(len(tags)), [""] * len(tags))
    panels[0].set_yticks(range(len(tags)), [f"{spell(tag)}  ({tag})" for tag in tags])
    legend_below(figure, 2)
    return Picture(
        "table_5",
        "Table 5 as a picture: mean steps that tokens of a part of speech are kept under TOVA, ours filled, with "
        "standard errors over texts, the paper's hollow. An example follows each part of speech, then its tag in the "
        "Penn treebank, as in the paper.",
        "Points of steps kept, a line for each part of speech, a panel for each multi-state size",
        png(figure),
    )
