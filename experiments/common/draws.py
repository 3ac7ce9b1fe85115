"""Lines of several settings on the same draws: documents, with what else of a setting is alike."""

import json
from collections.abc import Sequence
from typing import Any

from msrnn_jax.io.journal import Line

Draws = dict[str, Line]  # by document and what else of its setting there is


def select(lines: Sequence[Line], but: Sequence[str] = (), **wanted: Any) -> Draws:
    """The lines whose setting has these values, by what distinguishes them, but for what may differ all the same."""
    found: Draws = {}
    for line in lines:
        setting = line["setting"]
        if all(name in setting and setting[name] == value for name, value in wanted.items()):
            others = {name: value for name, value in setting.items() if name not in (*wanted, *but)}
            found.setdefault(json.dumps([line["document"], others], sort_keys=True), line)
    return found


def common(*groups: Draws) -> list[list[Line]]:
    """The lines of the draws that all groups have, group by group, in one order."""
    both = [key for key in groups[0] if all(key in group for group in groups)]
    return [[group[key] for key in both] for group in groups]


def values_of(lines: Sequence[Line], name: str) -> list[Any]:
    """The values of a setting, each once, numbers in order."""
    found = list(dict.fromkeys(line["setting"][name] for line in lines))
    return sorted(found) if all(isinstance(value, int | float) for value in found) else found


def full(lines: Sequence[Line], **wanted: Any) -> Draws:
    """The lines of the full model, whose budget says nothing, nor how its prompt was read."""
    return select(lines, ("budget", "mode"), policy="full", **wanted)


def sizes(lines: Sequence[Line], policy: str, **wanted: Any) -> list[Any]:
    """The budgets of a policy in these lines, ascending."""
    return values_of(list(select(lines, policy=policy, **wanted).values()), "budget")
