"""The text of every single token, and text made safe to look at."""

import re
import unicodedata
from collections.abc import Sequence

from msrnn_jax.text.byte_tokens import stable_length
from msrnn_jax.text.tokenizer import Tokenizer

MOST_HELD = 8  # tokens; what is decoded at once does not grow with a run of broken characters


def token_texts(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[str]:
    """What every token adds to the text; joined, they are the text, special tokens spelled out.

    A character may be made of several tokens: the last of them has it, the others have nothing.
    """

    def decode(start: int, end: int) -> str:
        return tokenizer.decode(tokens[start:end], skip_special=False)

    found = []
    before = start = 0  # a token is decoded after the ones before it, since some decoders drop first blanks
    given = 0  # characters of what is decoded from `before` on
    for end in range(1, len(tokens) + 1):
        text = decode(before, end)
        sure = len(text) if end == len(tokens) else max(given, stable_length(text))
        found.append(text[given:sure])
        given, held = sure, len(text) - sure
        if not held or end - start > MOST_HELD:
            before, start = start, end
            given = len(decode(before, start)) - held
    return found


def visible(text: str) -> str:
    """The text with line ends, carriage returns and tabs marked by arrows, and other control characters by pictures.

    So a text cannot move the cursor, change colours or reorder what stands beside it. A dot stands for a character
    that has no width.
    """
    text = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f]", lambda match: chr(0x2400 + ord(match[0])), text)
    text = re.sub("[\n\x85\u2028\u2029]", "↵\n", text).replace("\r", "←").replace("\t", "→\t")
    text = re.sub(f"[{_NO_WIDTH}]|^[{_JOINERS}]+$", "·", text)
    return "".join("\ufffd" if _is_hidden(character) else character for character in text)


_NO_WIDTH = "\xad\u200b\u2060\ufeff"  # wherever they stand
_JOINERS = "\u200c\u200d\ufe0e\ufe0f"  # they shape the characters around them, so they stay unless they are alone


def _is_hidden(character: str) -> bool:
    # Format characters are needed inside words of some scripts (joiners), but not those that set directions.
    kind = unicodedata.category(character)
    return (kind in ("Cc", "Cs") and character not in "\n\t") or (
        kind == "Cf" and unicodedata.bidirectional(character) not in ("BN", "AL")
    )


def decimals(value: float | None, places: int) -> str:
    """A number of a row for reading, `-` where it is none (nan, inf)."""
    return "-" if value is None else f"{value:.{places}f}"
