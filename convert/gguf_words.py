"""How texts are cut into words before byte-level tokens are merged: `tokenizer.ggml.pre`, by name."""

from typing import NamedTuple

from tokenizers import Regex, normalizers, pre_tokenizers


def _split(*patterns: str) -> tuple[pre_tokenizers.PreTokenizer, ...]:
    return tuple(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns)


# A contraction; a word, with one other sign before it; digits; other signs, with a space before and line ends
# after them; line ends with blanks before them; blanks, all but the last one if a word follows.
_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _split(_CASELESS + r"\p{N}{1,3}" + _REST)
_QWEN2 = _split(_CASELESS + r"\p{N}" + _REST)

# The same with words cut where a capital follows a small letter, slashes among the line ends, and no contractions.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_TEKKEN = _split(
    f"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# What llama.cpp does where it does not know better.
_UNKNOWN = _split(
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    "[0-9][0-9][0-9]",
)
_DIGITS = (pre_tokenizers.Digits(individual_digits=True),)


class Words(NamedTuple):
    """How texts are cut, and what goes with it.

    Attributes:
      cuts: one after another, each on the pieces that the one before it left.
      gpt2: the words of GPT-2 are cut last.
      composed: texts are brought into Unicode's composed form (NFC) first.
      whole: a word that is a token stays whole, whatever the merges say.
      starts: BOS is put before a text where the file does not say whether to.
    """

    cuts: tuple[pre_tokenizers.PreTokenizer, ...] = ()
    gpt2: bool = False
    composed: bool = False
    whole: bool = False
    starts: bool = False

    def normalizer(self) -> normalizers.Normalizer | None:
        """What is done to a text first."""
        return normalizers.NFC() if self.composed else None

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """Cuts a text into words, spelled in the letters that stand for bytes."""
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.gpt2)
        return pre_tokenizers.Sequence([*self.cuts, letters]) if self.cuts else letters


_LLAMA3_WORDS = Words(_LLAMA3, whole=True, starts=True)
_QWEN2_WORDS = Words(_QWEN2, composed=True)
_DIGIT_WORDS = Words(_DIGITS, gpt2=True)

WORDS = {
    "default": Words(_UNKNOWN),
    "gpt-2": Words(gpt2=True),
    "smollm": _DIGIT_WORDS,
    "starcoder": _DIGIT_WORDS,
    "refact": _DIGIT_WORDS,
    "llama-bpe": _LLAMA3_WORDS,
    "llama3": _LLAMA3_WORDS,
    "llama-v3": _LLAMA3_WORDS,
    "falcon3": _LLAMA3_WORDS,
    "pixtral": _LLAMA3_WORDS,
    "smaug-bpe": Words(_LLAMA3, whole=True),  # Llama 3's vocabulary without its BOS: SmolLM3
    "tekken": Words(_TEKKEN, whole=True, starts=True),  # Mistral Nemo and later
    "qwen2": _QWEN2_WORDS,
    "deepseek-r1-qwen": _QWEN2_WORDS,
}
