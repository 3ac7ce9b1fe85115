"""Prompts in tokens: the end of a document is cut off until the whole fits, never the question."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.understanding.documents import Document, Question
from experiments.understanding.tasks import TASKS
from msrnn_jax.io.provenance import json_hash
from msrnn_jax.text.tokenizer import Tokenizer

CUE = "Answer:"  # the last word of a prompt


class Asked(NamedTuple):
    """A question with the prompt that asks it."""

    document: Document
    question: Question
    prompt: np.ndarray  # [T] int32
    references: tuple[np.ndarray, ...]  # the answers by people, each [T] int32

    @property
    def sha256(self) -> str:
        """Of the question, its references, and both in tokens, 16 hex digits."""
        tokens = [array.tolist() for array in (self.prompt, *self.references)]
        return json_hash([self.question.text, self.question.references, tokens])


class Asker:
    """Makes prompts for one tokenizer, at most `limit` tokens long.

    Attributes:
      chat: the prompt is the user's message in the model's chat template; else plain text.
    """

    def __init__(self, tokenizer: Tokenizer, chat: bool):
        if chat and tokenizer.template is None:
            raise ValueError("chat is true, but the checkpoint has no chat template")
        self.tokenizer, self.chat = tokenizer, chat

    def ask(self, document: Document, questions: Sequence[Question], limit: int) -> list[Asked]:
        """Questions on one document.

        Raises:
          ValueError: where instruction and question alone are too long.
        """
        ends = self.tokenizer.encode_with_ends(document.text)[1]
        asked = []
        for question in questions:
            prompt = self._fit(document, ends, question, limit)
            references = tuple(map(self._reply, question.references))
            asked.append(Asked(document, question, prompt, references))
        return asked

    def check(self, document: Document, questions: Sequence[Question], limit: int) -> None:
        """Refuses questions that are too long with their instruction alone.

        Raises:
          ValueError: naming the first such question.
        """
        for question in questions:
            self._bare(document, question, limit)

    def _bare(self, document: Document, question: Question, limit: int) -> int:
        bare = len(self._encode(document.task, "", question.text))
        if bare > limit:
            raise ValueError(
                f"a prompt may have {limit} tokens, the context or a budget, but the {document.task} question "
                f"{question.name!r} has {bare} with its instruction and nothing of the text"
            )
        return bare

    def _fit(self, document: Document, ends: Sequence[int], question: Question, limit: int) -> np.ndarray:
        """The longest prompt, or nearly: tokens next to the cut may come out otherwise, so it is tried."""
        bare = self._bare(document, question, limit)
        kept = min(len(ends), limit - bare)
        while True:
            text = document.text[: ends[kept - 1]] if kept else ""
            tokens = self._encode(document.task, text, question.text)
            if len(tokens) <= limit:
                return np.asarray(tokens, np.int32)
            kept = max(0, kept - (len(tokens) - limit))

    def _encode(self, task: str, document: str, question: str) -> list[int]:
        text = TASKS[task].prompt.format(document=document, question=question)
        return self.tokenizer.chat([{"role": "user", "content": text}]) if self.chat else self.tokenizer.encode(text)

    def _reply(self, answer: str) -> np.ndarray:
        """An answer as it goes on from a prompt: at once in a chat, after a space in plain text."""
        if self.chat:
            return np.asarray(self.tokenizer.encode(answer, special=False), np.int32)
        cue, whole = self.tokenizer.encode(CUE), self.tokenizer.encode(f"{CUE} {answer}")
        return np.asarray(whole[len(cue) :], np.int32)


def shared(prompts: Sequence[np.ndarray]) -> int:
    """How many tokens at the beginning all prompts have in common."""
    least = min(map(len, prompts))
    differ = [np.flatnonzero(prompt[:least] != prompts[0][:least]) for prompt in prompts]
    return min([least, *(int(places[0]) for places in differ if len(places))])
