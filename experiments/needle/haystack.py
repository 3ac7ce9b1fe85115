"""Cases: a stretch of a book with one sentence put into it, and the values that the answer is chosen from."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.common.books import Book
from msrnn_jax.io.provenance import text_hash
from msrnn_jax.text.tokenizer import Tokenizer

SENTENCE = "The secret number of {city} is {value}."
QUESTION = "What is the secret number of {city}?"
OPENING = "The secret number of {city} is"  # of the answer, given to the model
DIGITS = 5
CHOICES = 10  # values that an answer is chosen from, the right one included
SENTENCE_END = re.compile(r"[.!?][\"'”’)]*\s+")
CITIES = (
    *("Accra", "Ankara", "Athens", "Baghdad", "Bangkok", "Bogota", "Brussels", "Budapest", "Cairo", "Caracas"),
    *("Copenhagen", "Dakar", "Damascus", "Dublin", "Hanoi", "Havana", "Helsinki", "Istanbul", "Jakarta", "Kabul"),
    *("Khartoum", "Lagos", "Lima", "Lisbon", "Madrid", "Manila", "Montevideo", "Moscow", "Nairobi", "Oslo"),
    *("Prague", "Quito", "Riga", "Santiago", "Seoul", "Singapore", "Tehran", "Tunis", "Vienna", "Warsaw"),
)


class Case(NamedTuple):
    """A text with a needle in it: the same for every policy, budget and order."""

    length: int  # most tokens of the text
    depth: float
    draw: int
    text: str
    city: str
    values: tuple[str, ...]  # [CHOICES], the right one first
    sha256: str  # of all this, the text in tokens; 16 hex digits

    @property
    def name(self) -> str:
        return f"{self.length}/{self.depth:g}/{self.draw}"

    @property
    def value(self) -> str:
        return self.values[0]

    @property
    def question(self) -> str:
        return QUESTION.format(city=self.city)

    @property
    def opening(self) -> str:
        return OPENING.format(city=self.city)


def draw_case(tokenizer: Tokenizer, books: Sequence[Book], seed: int, length: int, depth: float, draw: int) -> Case:
    """A case that depends on its arguments only, not on what else is drawn.

    Neither the city nor any of the values is in the book's part of the text.

    Args:
      books: each of at least `length` tokens.
      length: most tokens of the text; a few are missing where text and needle meet in other tokens than their own.
      depth: share of the book's characters before the needle, which moves to the nearest end of a sentence.
    """
    random = np.random.default_rng([seed, length, round(depth * 1e6), draw])
    book = books[int(random.integers(len(books)))]
    start = int(random.integers(len(book.tokens) - length + 1))
    tokens = book.tokens[start : start + length]
    source = tokenizer.decode(tokens)
    city = _absent([CITIES[index] for index in random.permutation(len(CITIES))], source, 1, book)[0]
    numbers = 10 ** (DIGITS - 1) + random.permutation(9 * 10 ** (DIGITS - 1))
    values = tuple(_absent([str(number) for number in numbers[: 100 * CHOICES]], source, CHOICES, book))
    sentence = SENTENCE.format(city=city, value=values[0])
    count = length - len(tokenizer.encode(f" {sentence}"))
    while True:
        text = put(sentence, tokenizer.decode(tokens[:count]).strip("\ufffd"), depth)  # half a character at the cuts
        encoded = tokenizer.encode(text)
        if len(encoded) <= length:
            break
        count -= len(encoded) - length
    return Case(length, depth, draw, text, city, values, text_hash(f"{encoded} {city} {values}"))


def put(sentence: str, hay: str, depth: float) -> str:
    """A text with a sentence in it, at the beginning, the end, or the end of the sentence nearest to a depth."""
    ends = [0, *(match.end() for match in SENTENCE_END.finditer(hay)), len(hay)]
    place = min(ends, key=lambda end: abs(end - depth * len(hay)))
    return f"{hay[:place].rstrip()} {sentence} {hay[place:].lstrip()}".strip()


def needle_tokens(tokenizer: Tokenizer) -> int:
    """Tokens of the longest needle and its question."""
    value = "0" * DIGITS
    pairs = [(SENTENCE.format(city=city, value=value), QUESTION.format(city=city)) for city in CITIES]
    return max(len(tokenizer.encode(sentence)) + len(tokenizer.encode(question)) for sentence, question in pairs)


def _absent(words: Sequence[str], text: str, count: int, book: Book) -> list[str]:
    found = [word for word in words if word not in text][:count]
    if len(found) < count:
        raise ValueError(f"text {book.name!r} has {words[0]!r} and all others that could be hidden in it")
    return found
