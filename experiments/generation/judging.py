"""A judge's comparison of every story with the full model's, in both orders, one line for every question."""

import functools
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console

from experiments.common.schema import MODEL
from experiments.common.study import Key, Unit, complete
from experiments.generation.endpoint import Judge, ask, key_of
from experiments.generation.fields import DROPPED, EQUAL, FULL, POLICY, UNREADABLE, check_judgement
from msrnn_jax.io.journal import Line, open_journal
from msrnn_jax.io.provenance import json_hash, text_hash

NAME = "generation_judge"
ANSWER = 200  # characters of an answer that are kept
QUESTION = """\
Two texts were written at this request:

{prompt}

===== Text (A) =====
{first}
===== End of text (A) =====

===== Text (B) =====
{second}
===== End of text (B) =====

Which of the two serves the request better?
(A) text A
(B) text B
(C) both are equally good or equally bad
Answer with (A), (B) or (C) alone, and give no reasons."""
# Of answers without parentheses those that are a letter, or say no more than that it is the answer.
PLAIN = re.compile(
    r"\W*(?:(?:my |the )?(?:answer|choice|option|verdict|response|text)\b(?: is)?\W*)?([abc])(?: is better)?\W*", re.I
)


def check_judge(judge: Judge, out: pathlib.Path, stories: pathlib.Path) -> None:
    """Refuses, before any work, a judge whose key is missing, and a file that cannot be written.

    Raises:
      ValueError: for either.
    """
    key_of(judge)
    if out.resolve() == stories.resolve():
        raise ValueError(f"judge_out is {str(out)!r}, where the stories go; it must be another file")
    with open_journal(out, (f"{NAME} run", f"{NAME} result"), "judge_out"):
        pass


def judge_stories(judge: Judge, out: pathlib.Path, lines: Sequence[Line], console: Console) -> list[Line]:
    """Asks what has not been asked yet, and returns all judgements.

    Args:
      lines: of stories, the full model's among them; those it has no story beside are left out.

    Returns:
      Two lines for every other story, by which text came first: `choice` is "policy", "full", "equal", "unreadable",
      or "dropped" where there was nothing to compare, and nobody was asked; `answer` is its beginning.
    """
    full = {line["document"]: line for line in lines if line["setting"]["policy"] == FULL}
    others = [line for line in lines if line["setting"]["policy"] != FULL and line["document"] in full]
    units = [unit for line in others for unit in _units(judge, line, full[line["document"]])]
    about = {name: lines[0][name] for name in MODEL}
    return complete(out, NAME, judge, about, units, console, check_judgement)


def _units(judge: Judge, line: Line, full: Line) -> Iterator[Unit]:
    texts = {POLICY: line["text"], FULL: full["text"]}
    for first, second in ((POLICY, FULL), (FULL, POLICY)):
        setting = {
            "endpoint": judge.url.rstrip("/"),  # others may have a model of the same name
            "judge": judge.model,
            "question_sha256": question_hash(),
            "policy": line["setting"]["policy"],
            "budget": line["setting"]["budget"],
            "first": first,
        }
        sha256 = json_hash([line["prompt"], texts[POLICY], texts[FULL]])
        work = functools.partial(_compare, judge, line, texts, first, second)
        yield Unit([Key(setting, line["document"], sha256)], work)


def _compare(judge: Judge, line: Line, texts: dict[str, str], first: str, second: str) -> list[dict[str, Any]]:
    if forgot_nothing(line) or texts[POLICY] == texts[FULL]:
        return [{"choice": DROPPED, "answer": None}]
    answer = ask(judge, question_of(line["prompt"], texts[first], texts[second]))
    chosen = {"A": first, "B": second, "C": EQUAL, None: UNREADABLE}[read_choice(answer)]
    return [{"choice": chosen, "answer": answer[:ANSWER]}]


def forgot_nothing(line: Line) -> bool:
    """Whether a story ended before anything was forgotten that could matter to it.

    A query sees what is kept and itself, so budget + 1 tokens, and the last token of a story is no query.
    """
    return line["prompt_tokens"] + line["tokens"] <= line["setting"]["budget"] + 2


def question_of(prompt: str, first: str, second: str) -> str:
    """The message to a judge; what stands in braces in a story stays as it is."""
    return QUESTION.format(prompt=prompt, first=first, second=second)


def question_hash() -> str:
    """Of the wording: judgements of another wording are other ones."""
    return text_hash(QUESTION)


def read_choice(answer: str) -> str | None:
    """ "A", "B" or "C"; None for an answer that says none of them, or more than one."""
    found = {letter.upper() for letter in re.findall(r"\(([abc])\)", answer, re.I)}
    if not found and (plain := PLAIN.fullmatch(answer)):
        found = {plain[1].upper()}
    return found.pop() if len(found) == 1 else None


def outcomes(lines: Iterable[Line]) -> dict[str, str]:
    """A win, a tie or a loss for every document of which both orders were judged, or that it was dropped."""
    choices: dict[str, list[str]] = {}
    for line in lines:
        choices.setdefault(line["document"], []).append(line["choice"])
    return {document: _outcome(both) for document, both in choices.items() if len(both) == 2}


def _outcome(choices: Sequence[str]) -> str:
    """Of the two orders: a win or a loss only if both say so."""
    if DROPPED in choices:
        return DROPPED
    if set(choices) == {POLICY}:
        return "win"
    return "loss" if set(choices) == {FULL} else "tie"
