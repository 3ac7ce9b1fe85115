"""What is worked out together: all questions on one document under one policy."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common.model import Model
from experiments.common.policies import BASELINE, FULL, named
from experiments.common.study import Key, Unit
from experiments.understanding.answering import PIECE, Reading, Stop, examine, read_on, read_trunk, with_budget
from experiments.understanding.documents import Document, Question
from experiments.understanding.prompts import Asked, Asker, shared
from msrnn_jax.policies import Full, Policy

ROOM = 512  # what is kept free for answers is a multiple of it: few compilations

Trunk = Mapping[Stop, Reading]
Numbers = dict[str, Any]


class Exam(NamedTuple):
    """One document, what is asked about it, and how."""

    model: Model
    asker: Asker
    asked: Sequence[Asked]
    context: int  # tokens of a prompt, at most
    most: int  # tokens of an answer, at most
    policies: Sequence[Policy]
    budgets: Sequence[int]
    modes: Sequence[str]

    @property
    def beginning(self) -> np.ndarray:
        """What all prompts begin with: whole pieces, or everything where there is one question."""
        first = self.asked[0].prompt
        return first if len(self.asked) == 1 else first[: _whole_pieces(shared([one.prompt for one in self.asked]))]

    @property
    def settings(self) -> list[tuple[int, str]]:
        """Of every policy: budgets and modes."""
        return [(budget, mode) for mode in self.modes for budget in self.budgets]

    def key(self, asked: Asked, policy: str, budget: int, mode: str | None = None) -> Key:
        """What one line is about."""
        setting = {
            "task": asked.document.task,
            **named(policy),
            "budget": budget,
            "mode": mode,
            "context": self.context,
            "max_new_tokens": self.most,
            "chat": self.asker.chat,
        }
        return Key(setting, asked.question.name, asked.sha256)


def make_units(exam: Exam, trunk: Callable[[], Trunk]) -> Iterator[Unit]:
    """Full attention, the texts cut short, and every policy.

    Args:
      trunk: what `read_full` returns for this exam; kept from one unit to the next.
    """
    yield Unit([exam.key(one, FULL, exam.context) for one in exam.asked], lambda: _full(exam, trunk()))
    yield Unit(
        [exam.key(one, BASELINE, budget) for one in exam.asked for budget in exam.budgets],
        lambda: _cut_short(exam, trunk()),
    )
    for policy in exam.policies:
        yield Unit(
            [exam.key(one, str(policy), *setting) for one in exam.asked for setting in exam.settings],
            functools.partial(_compressed, exam, policy, trunk),
        )


def read_full(exam: Exam) -> Trunk:
    """The beginning of all prompts under full attention, with every place from which something goes on."""
    stops = [_end(exam), *_rungs(exam).values(), *_forks(exam).values()]
    return read_trunk(exam.model, Full(), exam.beginning, exam.context, stops)


def _full(exam: Exam, trunk: Trunk) -> list[Numbers]:
    found = []
    for one in exam.asked:
        whole = _finish(exam, Full(), trunk[_end(exam)], one)
        reading = with_budget(Full(), whole, exam.context + _room(exam, one))
        found += examine(exam.model, Full(), one, [reading], exam.most)
    return found


def _cut_short(exam: Exam, trunk: Trunk) -> list[Numbers]:
    forks, found = _forks(exam), []
    for one in exam.asked:
        readings = []
        for budget, fork in forks.items():
            prompt = _short_prompt(exam.asker, one.document, one.question, budget)
            reading = read_on(exam.model, Full(), trunk[fork], prompt[fork.place :])
            readings.append(with_budget(Full(), reading, fork.budget + _room(exam, one)))
        found += examine(exam.model, Full(), one, readings, exam.most)
    return found


def _compressed(exam: Exam, policy: Policy, full: Callable[[], Trunk]) -> list[Numbers]:
    # While nothing is forgotten, the state of a policy without statistics is the full model's.
    reader = Full() if _is_stateless(policy) else policy
    rungs = _rungs(exam)
    if _is_stateless(policy):
        trunk = full()
    else:
        trunk = read_trunk(exam.model, policy, exam.beginning, exam.context, [_end(exam), *rungs.values()])
    stepwise, found = {}, []
    if "stepwise" in exam.modes:
        for budget, rung in rungs.items():
            stepwise[budget] = read_on(exam.model, policy, trunk[rung], exam.beginning[rung.place :])
    for one in exam.asked:
        readings = {}
        for budget, reading in stepwise.items():
            readings[budget, "stepwise"] = _finish(exam, policy, reading, one)
        if "oneshot" in exam.modes:
            whole = _finish(exam, reader, trunk[_end(exam)], one)
            readings |= {(budget, "oneshot"): with_budget(policy, whole, budget) for budget in exam.budgets}
        found += examine(exam.model, policy, one, [readings[setting] for setting in exam.settings], exam.most)
    return found


def _finish(exam: Exam, policy: Policy, reading: Reading, one: Asked) -> Reading:
    """Reads the rest of a prompt."""
    return read_on(exam.model, policy, reading, one.prompt[len(exam.beginning) :])


def _end(exam: Exam) -> Stop:
    """Where every question goes on from what all have in common, with nothing forgotten."""
    return Stop(len(exam.beginning), exam.context)


def _rungs(exam: Exam) -> dict[int, Stop]:
    """For every budget the place up to which nothing is forgotten under it."""
    most = len(exam.beginning)
    return {budget: Stop(min(_whole_pieces(budget), most), budget) for budget in exam.budgets}


def _forks(exam: Exam) -> dict[int, Stop]:
    """For every budget the place where the prompts that are cut to it part from the others."""
    forks = {}
    for budget in exam.budgets:
        short = [_short_prompt(exam.asker, one.document, one.question, budget) for one in exam.asked]
        forks[budget] = Stop(_whole_pieces(shared([exam.beginning, *short])), max(exam.budgets))
    return forks


@functools.lru_cache(maxsize=1024)
def _short_prompt(asker: Asker, document: Document, question: Question, budget: int) -> np.ndarray:
    return asker.ask(document, [question], budget)[0].prompt


def _room(exam: Exam, one: Asked) -> int:
    """For an answer, or the longest of the references."""
    longest = max(exam.most, *map(len, one.references))
    return -(-longest // ROOM) * ROOM


def _whole_pieces(count: int) -> int:
    return count // PIECE * PIECE


def _is_stateless(policy: Policy) -> bool:
    return policy.scope == "layer" and not jax.tree.leaves(jax.eval_shape(lambda: policy.init(1, 2)))
