"""Documents cut into segments of tokens, each with where it comes from and how many bytes it says."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from msrnn_jax.io.provenance import text_hash, tokens_hash
from msrnn_jax.text.documents import Document
from msrnn_jax.text.tokenizer import Tokenizer
from msrnn_jax.text.tokens import pad


class SegmentOrigin(NamedTuple):
    """Where a segment comes from and what there is to predict in it."""

    document: str  # its name
    document_sha256: str  # of its text, 16 hex digits
    copy: int  # documents of the same text before it
    segment_index: int  # in its document
    tokens: int  # predicted: all but the first
    bytes: int  # of UTF-8 that they stand for
    tokens_sha256: str  # of all its tokens, BOS before them included, 16 hex digits


class Segments(NamedTuple):
    """Non-overlapping segments, none of which spans two documents."""

    tokens: np.ndarray  # [B, T] int32, padded on the right to the longest there is
    lengths: np.ndarray  # [B] int32, from 2
    sources: list[SegmentOrigin]  # [B]
    skipped: int  # documents in which there is nothing to predict
    bos: int | None = None  # the token put before every segment

    @property
    def documents(self) -> int:
        """Documents that have a segment."""
        return len({(source.document_sha256, source.copy) for source in self.sources})

    @property
    def predicted(self) -> int:
        """Predicted tokens: all but the first of every segment."""
        return int((self.lengths - 1).sum())


def cut_documents(
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    size: int,
    most: int = 0,
    *,
    bos_every_segment: bool = False,
) -> Segments:
    """Tokenises documents one by one and cuts each into segments.

    The first token of a segment is context only. BOS is where the tokenizer itself puts it, if it does: at the start of
    each document, and so of its first segment.

    Args:
      size: tokens of a segment, from 2; the last of a document may be shorter.
      most: > 0 keeps the first segments only, and looks at no document after them.
      bos_every_segment: put BOS before every segment, beside its `size` tokens, which then are all predicted; `size`
        may be 1. It does not stand twice where the tokenizer puts it, too.

    Raises:
      ValueError: where no document has two tokens (one with BOS before it), for one with tokens that the model does not
        know, and for a tokenizer without BOS if it is asked for.
    """
    bos = tokenizer.bos if bos_every_segment else None
    if bos_every_segment and bos is None:
        raise ValueError("bos_every_segment is given, but the tokenizer has no BOS token")
    least = 2 if bos is None else 1
    rows: list[np.ndarray] = []
    sources: list[SegmentOrigin] = []
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
        if bos is not None and tokens[:1] == [bos]:
            tokens, ends = tokens[1:], ends[1:]
        if len(tokens) < least:
            skipped += 1
            continue
        reached = [0, *_bytes_until(document.text, ends).tolist()]  # before the first token and after each
        for number, row in enumerate(_cut(tokens, size, bos)):
            predicted = len(row) - 1
            last = number * size + predicted + least - 1  # tokens of the document up to the end of the segment
            said = reached[last] - reached[last - predicted]
            rows.append(row)
            place = document.name, digest, copy, number
            sources.append(SegmentOrigin(*place, predicted, said, tokens_hash(row)))
    if not rows:
        few = "2 tokens" if least == 2 else "1 token"
        raise ValueError(f"every document has fewer than {few}; there is nothing to predict")
    rows, sources = (rows[:most], sources[:most]) if most else (rows, sources)
    return Segments(*pad(rows), sources, skipped, bos)


def _bytes_until(text: str, ends: Sequence[int]) -> np.ndarray:
    """UTF-8 bytes of the text up to the end of every token, [tokens]; `ends` are in characters."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    before = np.concatenate([[0], np.cumsum(widths)])
    # A special token, such as one that ends the text, stands for nothing and says that it ends at 0.
    return before[np.maximum.accumulate(np.asarray(ends, np.int64))]


def segment(tokens: Sequence[int] | np.ndarray, size: int, *, bos: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a text into non-overlapping segments.

    Args:
      size: tokens of the text in a segment, see `check_size`; the last one may have fewer.
      bos: a token to put before every segment, so that all tokens of the text are predicted. By default the first of
        each segment is context only.

    Returns:
      [B, size] int32, or [B, 1 + size] with `bos`, the last padded with zeros, and how many tokens of each are real. A
      last segment with nothing to predict is left out.

    Raises:
      ValueError: for a size below 2 or a text below two tokens; below one with `bos`.
    """
    least = 2 if bos is None else 1
    check_size(size, least)
    if len(tokens) < least:
        raise ValueError(f"the text has {len(tokens)} tokens; it must have at least {least}")
    return pad(_cut(tokens, size, bos), size if bos is None else 1 + size)


def _cut(tokens: Sequence[int] | np.ndarray, size: int, bos: int | None) -> list[np.ndarray]:
    """Segments of their own lengths; a last one with nothing to predict is left out."""
    before = [] if bos is None else [bos]
    parts = [np.asarray([*before, *tokens[start : start + size]], np.int32) for start in range(0, len(tokens), size)]
    return [part for part in parts if len(part) > 1]


def check_size(size: int, least: int = 2) -> None:
    """Refuses a segment in which there is nothing to predict: of one token, unless BOS is put before it."""
    if size < least:
        what = "one token of context and one to predict" if least > 1 else "one token to predict"
        raise ValueError(f"segment size is {size}; it must be at least {least}, {what}")
