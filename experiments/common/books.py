"""Long texts for experiments: segments spread evenly over books, or the beginning of each."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from rich.console import Console

from experiments.common.console import last_part, left_out_note
from msrnn_jax.io.provenance import tokens_hash
from msrnn_jax.text.documents import read_documents
from msrnn_jax.text.tokenizer import Tokenizer

T = TypeVar("T")


class Passage(NamedTuple):
    """Tokens of a book."""

    book: str  # name of its file
    start: int  # tokens of the book before it
    tokens: np.ndarray  # [T] int32

    @property
    def name(self) -> str:
        return f"{self.book}@{self.start}"

    @property
    def sha256(self) -> str:
        """Of the tokens, 16 hex digits."""
        return tokens_hash(self.tokens)


class Book(NamedTuple):
    """A text in tokens."""

    name: str
    tokens: np.ndarray  # [T] int32


def read_books(tokenizer: Tokenizer, paths: Sequence[str], least: int, console: Console, most: int = 0) -> list[Book]:
    """Books of at least so many tokens, in the order of `read_documents`.

    Args:
      paths: files and folders; none for Python's help topics.
      least: tokens of the shortest that is taken; of others a note is printed.
      most: > 0 takes the first ones only, and reads no further.

    Raises:
      ValueError: where no text is long enough, one has tokens that the model does not know, or two have one name.
    """
    books: list[Book] = []
    longest = 0
    left_out = left_out_note(console)
    for document in read_documents(paths, unreadable=left_out):
        if most and len(books) >= most:
            break
        try:
            tokens = np.asarray(tokenizer.encode(document.text), np.int32)
        except ValueError as error:
            raise ValueError(f"{document.name}: {error}") from None
        longest = max(longest, len(tokens))
        name = last_part(document.name)
        if len(tokens) < least:
            left_out(f"{name} has {len(tokens):,} tokens, fewer than {least:,}")
            continue
        books.append(Book(name, tokens))
    if not books:
        raise ValueError(f"data has no text of {least:,} tokens; the longest has {longest:,}")
    names = [book.name for book in books]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"data has two texts called {twice[0]!r}; their results could not be told apart")
    return books


def spaced(items: Sequence[T], count: int) -> list[T]:
    """As many as asked for, evenly spread, each in the middle of an equal share; 0 takes all."""
    count = count or len(items)
    return [items[(2 * index + 1) * len(items) // (2 * count)] for index in range(count)]


def spread(book: Book, size: int, count: int) -> list[Passage]:
    """Non-overlapping segments of a book, on multiples of `size`, as `spaced` takes them."""
    starts = [start * size for start in spaced(range(len(book.tokens) // size), count)]
    return [Passage(book.name, start, book.tokens[start : start + size]) for start in starts]
