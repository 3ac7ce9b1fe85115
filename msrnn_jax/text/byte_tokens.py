"""Tokens that stand for one byte each, as SentencePiece spells characters that it has no token for."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

BROKEN = "\ufffd"  # what a byte is decoded to that belongs to no character
MOST_BROKEN = 3  # bytes at the end of a text that later ones can still make a character of; those have four at most

_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


def mend_bytes(tokens: Sequence[str]) -> list[str]:
    """The same tokens, with `BROKEN` for every byte that belongs to no character, as in SentencePiece.

    The decoder of `tokenizers` keeps the characters of a run of bytes only where the whole run is UTF-8. Bytes that
    are stay as they are, for that decoder to read.
    """
    return [piece for bytewise, run in groupby(tokens, _is_byte) for piece in (_mended(run) if bytewise else run)]


def _is_byte(token: str) -> bool:
    return _BYTE.fullmatch(token) is not None


def _mended(run: Iterator[str]) -> Iterator[str]:
    text = bytes(int(token[3:5], 16) for token in run).decode("utf-8", "surrogateescape")
    for character in text:
        if "\udc80" <= character <= "\udcff":  # how Python escapes one byte that belongs to no character
            yield BROKEN
        else:
            yield from (f"<0x{byte:02X}>" for byte in character.encode("utf-8"))


def stable_length(text: str) -> int:
    """How many characters of a text cannot change as tokens come: all but bytes at its end that may be half of one."""
    return len(text) - min(len(text) - len(text.rstrip(BROKEN)), MOST_BROKEN)
