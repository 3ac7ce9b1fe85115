"""Text to tokens and back, and chats to tokens."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax import Array

from msrnn_jax.text.byte_tokens import BROKEN, mend_bytes
from msrnn_jax.text.tokens import check_tokens

ENDS = ("bos_token", "eos_token")  # as chat templates and the settings name them
TEMPLATE_TOKENS = (*ENDS, "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
OTHER_TOKENS = "extra_special_tokens"  # where the settings keep those of other names
MARK = "the-answer-9f2c"  # stands for an answer where only what surrounds it is wanted


class Tokenizer:
    """Wraps a `tokenizers.Tokenizer` with the ids that start and stop a text.

    Attributes:
      bos: id of the token that begins a text, or None.
      stop: ids that end an answer.
      template: the chat template, in jinja2, or None.
      names: what the template writes for `bos_token`, `eos_token`, `unk_token` and other special tokens; it may lack
        any. By default `bos_token` and `eos_token`, the texts of `bos` and of the first that stops.
      date: what a template that writes the date takes for now; None: the clock.
      vocab_size: how many tokens the model knows, beyond which texts are refused: a tokenizer may have more, such as
        a `[PAD]` that was added to it alone. None: any.
    """

    def __init__(
        self,
        backend: Any,
        *,
        bos: int | None,
        stop: Sequence[int],
        template: str | None,
        names: Mapping[str, str] | None = None,
        date: datetime.datetime | None = None,
        vocab_size: int | None = None,
    ):
        self.backend = backend
        backend.no_truncation()  # what it was trained with is no property of texts
        backend.no_padding()
        self.bos = bos
        self.stop = tuple(stop)
        self.template = template
        self.date = date
        self.vocab_size = vocab_size
        ids = {"bos_token_id": bos, "eos_token_ids": self.stop}
        self.names = template_tokens(backend, ids) if names is None else dict(names)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token numbers of a text.

        Args:
          special: with what the tokenizer itself adds, such as BOS.

        Raises:
          ValueError: for a text whose tokens the model does not know.
        """
        return self._encoded(text, special).ids

    def encode_with_ends(self, text: str, *, special: bool = True) -> tuple[list[int], list[int]]:
        """`encode`, and the character of the text at which every token ends; 0 for those that stand for no text."""
        encoding = self._encoded(text, special)
        return encoding.ids, [end for _, end in encoding.offsets]

    def _encoded(self, text: str, special: bool) -> Any:
        _check_text(text)
        encoding = self.backend.encode(text, add_special_tokens=special)
        if self.vocab_size is not None:
            last = max(encoding.ids, default=0)
            check_tokens(self.vocab_size, f"text with {self.backend.id_to_token(last)!r}", np.asarray([last]))
        return encoding

    def decode(self, tokens: Sequence[int] | np.ndarray | Array, *, skip_special: bool = True) -> str:
        """The text of token numbers, special tokens left out unless asked for.

        Tokens that are bytes are decoded as by SentencePiece: what is no character is U+FFFD, one for every byte.
        """
        numbers = np.asarray(tokens, np.int64).tolist()
        text = self.backend.decode(numbers, skip_special_tokens=skip_special)
        if BROKEN not in text or not self._has_byte_tokens():
            return text
        special = {token for token, added in self.backend.get_added_tokens_decoder().items() if added.special}
        kept = [number for number in numbers if not (skip_special and number in special)]
        spelled = [token for token in map(self.backend.id_to_token, kept) if token is not None]
        return self.backend.decoder.decode(mend_bytes(spelled))

    def _has_byte_tokens(self) -> bool:
        decoder = self.backend.decoder
        return decoder is not None and decoder.decode(["<0x41>"]) == "A"

    def chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> list[int]:
        """Token numbers of a conversation in the model's own format.

        The template runs in jinja2's sandbox, in a process of its own, within limits of time and memory.

        Args:
          messages: mappings with `role` and `content`.
          add_generation_prompt: end with the words that open the assistant's turn.

        Raises:
          ValueError: where the checkpoint has no template, or the template refuses the messages or does not end.
        """
        return self._encode_rendered(self.render(messages, add_generation_prompt=add_generation_prompt))[0]

    def reply(self, message: str, *, closed: bool) -> list[int]:
        """Token numbers that take a conversation from an answer to the next one: what `chat` puts between them.

        So a state that has seen a conversation goes on without the words of it, where the template puts turns one after
        another and the answer is as it would write it. `conversation.answer` goes on under any template.

        Args:
          message: what the user says next.
          closed: whether the answer ended with a stop token, which then is not repeated.

        Raises:
          ValueError: as `chat`, and for a template that does not simply put turns one after another: one that drops
            thinking, for example.
        """
        mark = MARK
        while mark in message:
            mark += "-"

        def rendered(answer: str) -> str:
            turns = [("user", "."), ("assistant", answer), ("user", message)]
            return self.render([{"role": role, "content": content} for role, content in turns])

        text, thought = rendered(mark), f"<think>\n.\n</think>\n\n{mark}"
        if text.count(mark) != 1 or rendered(thought) != text.replace(mark, thought):
            raise ValueError(
                "chat template: it changes earlier answers (drops their thinking, for example), so a conversation "
                "cannot go on from its state; msrnn_jax.generation.conversation reads it again from before the answer"
            )
        start = text.index(mark) + len(mark)
        if closed:
            after = text[start:].lstrip()
            ends = [end for end in map(self._spell, self.stop) if end and after.startswith(end)]
            start = len(text) - len(after) + len(ends[0]) if ends else start
        # In its place: some tokenizers spell the beginning of a text in another way.
        tokens, offsets = self._encode_rendered(text)
        return [token for token, (begin, _) in zip(tokens, offsets, strict=True) if begin >= start]

    def _encode_rendered(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self._encoded(text, special=False)
        if not encoding.ids:
            raise ValueError("chat template: it makes no text of these messages")
        return encoding.ids, encoding.offsets

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        """The text whose tokens `chat` returns: what transformers' `apply_chat_template` makes, without tools."""
        from msrnn_jax.text.chat_template import render

        if self.template is None:
            raise ValueError("the checkpoint has no chat_template.jinja; encode the text yourself")
        turns = [{key: value for key, value in message.items() if value is not None} for message in messages]
        stated = {"messages": turns, "tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
        return render(self.template, {**self.names, **stated}, self.date)

    def _spell(self, token: int) -> str:
        return self.backend.id_to_token(token) or ""


def template_tokens(backend: Any, settings: Mapping[str, Any]) -> dict[str, str]:
    """What chat templates write for `bos_token`, `unk_token` and the like; without the names that they do not have.

    Settings that do not say are of an earlier version, which wrote the token of `bos_token_id` and the first of
    `eos_token_ids`.

    Args:
      backend: a `tokenizers.Tokenizer`.
      settings: the content of a checkpoint's tokenizer_config.json.
    """
    if any(name in settings for name in ENDS):
        named = {**settings.get(OTHER_TOKENS, {}), **{name: settings.get(name) for name in TEMPLATE_TOKENS}}
        return {name: text for name, text in named.items() if text is not None}
    ids = (settings.get("bos_token_id"), next(iter(settings.get("eos_token_ids") or []), None))
    texts = ["" if number is None else backend.id_to_token(number) or "" for number in ids]
    return dict(zip(ENDS, texts, strict=True))


def token_settings(names: Mapping[str, str]) -> dict[str, Any]:
    """What `template_tokens` reads: `names` as a tokenizer_config.json of transformers states them, too."""
    others = {name: text for name, text in names.items() if name not in TEMPLATE_TOKENS}
    stated = {name: names[name] for name in TEMPLATE_TOKENS if name in names}
    return {**dict.fromkeys(ENDS), **stated, **({OTHER_TOKENS: others} if others else {})}


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"text {text!r} holds {error.object[error.start]!r}, which is no character") from None
