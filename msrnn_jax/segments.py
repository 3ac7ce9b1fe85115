"""Documents cut into segments of tokens, each with where it comes from and how many bytes it says."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from msrnn_jax.evaluate import segment
from msrnn_jax.padding import pad
from msrnn_jax.record import text_hash, tokens_hash
from msrnn_jax.texts import Document
from msrnn_jax.tokenizer import Tokenizer


class Source(NamedTuple):
    """Where a segment comes from and what there is to predict in it."""

    document: str  # its name
    document_sha256: str  # of its text, 16 hex digits
    copy: int  # documents of the same text before it
    segment_index: int  # in its document
    tokens: int  # predicted: all but the first
    bytes: int  # of UTF-8 that they stand for
    tokens_sha256: str  # of all its tokens, 16 hex digits


class Segments(NamedTuple):
    """Non-overlapping segments, none of which spans two documents."""

    tokens: np.ndarray  # [B, T] int32, padded on the right to the longest there is
    lengths: np.ndarray  # [B] int32, from 2
    sources: list[Source]  # [B]
    skipped: int  # documents of fewer than 2 tokens

    @property
    def documents(self) -> int:
        """Documents that have a segment."""
        return len({(source.document_sha256, source.copy) for source in self.sources})

    @property
    def predicted(self) -> int:
        """Predicted tokens: all but the first of every segment."""
        return int((self.lengths - 1).sum())


def cut_documents(tokenizer: Tokenizer, documents: Sequence[Document], size: int, most: int = 0) -> Segments:
    """Tokenises documents one by one and cuts each into segments.

    Args:
      size: tokens of a segment, from 2; the last of a document may be shorter.
      most: > 0 keeps the first segments only, and looks at no document after them.

    Raises:
      ValueError: where no document has two tokens, and for one with tokens that the model does not know.
    """
    rows: list[np.ndarray] = []
    sources: list[Source] = []
    skipped = 0
    seen: Counter[str] = Counter()
    for document in documents:
        if most and len(rows) >= most:
            break
        digest = text_hash(document.text)
        copy, seen[digest] = seen[digest], seen[digest] + 1
        try:
            tokens, ends = tokenizer.encode_with_ends(document.text)
        except ValueError as error:
            raise ValueError(f"{document.name}: {error}") from None
        if len(tokens) < 2:
            skipped += 1
            continue
        cut = min(size, len(tokens))
        reached = _bytes_until(document.text, ends)  # [tokens]
        for number, (row, length) in enumerate(zip(*segment(tokens, cut), strict=True)):
            first, last = number * cut, number * cut + int(length) - 1
            said = int(reached[last] - reached[first])
            rows.append(row[:length])
            place = document.name, digest, copy, number
            sources.append(Source(*place, int(length) - 1, said, tokens_hash(row[:length])))
    if not rows:
        raise ValueError("every document has fewer than 2 tokens; there is nothing to predict")
    rows, sources = (rows[:most], sources[:most]) if most else (rows, sources)
    return Segments(*pad(rows), sources, skipped)


def _bytes_until(text: str, ends: Sequence[int]) -> np.ndarray:
    """UTF-8 bytes of the text up to the end of every token, [tokens]; `ends` are in characters."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    before = np.concatenate([[0], np.cumsum(widths)])
    # A special token, such as one that ends the text, stands for nothing and says that it ends at 0.
    return before[np.maximum.accumulate(np.asarray(ends, np.int64))]
