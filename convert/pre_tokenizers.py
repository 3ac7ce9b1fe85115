"""How texts are cut into words before byte-level tokens are merged: `tokenizer.ggml.pre`, by name."""

from typing import NamedTuple

from tokenizers import Regex, normalizers, pre_tokenizers

Cuts = tuple[pre_tokenizers.PreTokenizer, ...]


def _split(*patterns: str) -> Cuts:
    return tuple(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns)


# A contraction; a word, with one other sign before it; digits; other signs, with a space before and line ends
# after them; line ends with blanks before them; blanks, all but the last one if a word follows.
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_WORD = rf"{_BEFORE}\p{{L}}+"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_REST = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_BLANKS}"
LLAMA3 = _split(rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_REST}")
QWEN2 = _split(rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_REST}")
MINICPM5 = _split(r"\p{N}{1,3}", rf"{_CONTRACTION}|{_WORD}|\p{{N}}+|{_REST}")
SEED_CODER = _split(rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+|{_BLANKS}")
BAILING = _split(
    rf"'(?i:[sdmt]|ll|ve|re)|{_BEFORE}+\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
# The same with words cut where a capital follows a small letter, and slashes among the line ends.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SIGNS = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"
_CASED = (f"{_BEFORE}{_UPPER}*{_LOWER}+", f"{_BEFORE}{_UPPER}+{_LOWER}*")
TEKKEN = _split(rf"{'|'.join(_CASED)}|\p{{N}}|{_SIGNS}")
GPT4O = _split(rf"{'|'.join(f'{word}{_CONTRACTION}?' for word in _CASED)}|\p{{N}}{{1,3}}|{_SIGNS}")
# Letters that have a case, but for some blocks: DeepSeek's own list of them, in hexadecimal.
_LETTERS = """
    41-5a 61-7a b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376 377 37b-37d 37f 386 388-38a 38c 38e-3a1
    3a3-3f5 3f7-481 48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba 1cbd-1cbf 1d00-1d2b 1d6b-1d77 1d79-1d9a
    1e00-1f15 1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57 1f59 1f5b 1f5d 1f5f-1f7d 1f80-1fb4 1fb6-1fbc 1fbe 1fc2-1fc4
    1fc6-1fcc 1fd0-1fd3 1fd6-1fdb 1fe0-1fec 1ff2-1ff4 1ff6-1ffc 2102 2107 210a-2113 2115 2119-211d 2124 2126 2128
    212a-212d 212f-2134 2139 213c-213f 2145-2149 214e 2183 2184 2c00-2c7b 2c7e-2ce4 2ceb-2cee 2cf2 2cf3 a640-a66d
    a680-a69b a722-a76f a771-a787 a78b-a78e ab70-abbf fb00-fb06 fb13-fb17 ff21-ff3a ff41-ff5a 10400-1044f 104b0-104d3
    104d8-104fb 10c80-10cb2 10cc0-10cf2 118a0-118df 1e900-1e943
"""
_SIGN_RANGES = "21-2f 3a-7e ff01-ff0f ff1a-ff5e 2018-201f 3000-3002"


def _any_of(ranges: str) -> str:
    """The class of the characters in these ranges of code points."""
    ends = ["-".join(rf"\x{{{end}}}" for end in part.split("-")) for part in ranges.split()]
    return f"[{''.join(ends)}]"


_EAST_ASIAN = _any_of("4e00-9fa5 800-4e00 ac00-d7ff")
_DIGITS = pre_tokenizers.Digits(individual_digits=True)
DEEPSEEK_LLM = (
    *_split(r"[\r\n]", rf"\s?{_any_of(_LETTERS)}+", rf"\s?{_any_of(_SIGN_RANGES)}+", r"\s+$", rf"{_EAST_ASIAN}+"),
    _DIGITS,
)
DEEPSEEK_CODER = (*_split(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", rf"{_EAST_ASIAN}+"), _DIGITS)
DEEPSEEK_V3 = _split(
    r"\p{N}{1,3}",
    f"{_any_of('4e00-9fa5 3040-309f 30a0-30ff')}+",
    rf"{_any_of('21-2f 3a-40 5b-60 7b-7e')}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_BLANKS}",
)
BLOOM = _split(r" ?[^(\s|.,!?…。，、।۔،)]+")
VIKING = (*BLOOM, _DIGITS)
SUPERBPE = _split(r"\p{N}+", r"(?=(\d{3})+(?!\d))")  # digits in threes from the right; spaces are no ends of words
DIGITS = (_DIGITS,)
# Falcon's digits are cut after the words have been spelled in the letters that stand for bytes, some of which are
# numbers, such as ² and ¼, by Unicode.
FALCON_SIGNS = (pre_tokenizers.Punctuation("contiguous"),)
FALCON_DIGITS = (pre_tokenizers.Digits(individual_digits=False), *_split("[0-9][0-9][0-9]"))
# What llama.cpp does where it does not know better.
UNKNOWN = _split(
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    "[0-9][0-9][0-9]",
)


class Words(NamedTuple):
    """How texts are cut, and what goes with it.

    Attributes:
      cuts: one after another, each on the pieces that the one before it left.
      gpt2: the words of GPT-2 are cut then.
      spelled: more cuts, when words are spelled in the letters that stand for bytes.
      composed: texts are brought into Unicode's composed form (NFC) first.
      whole: a word that is a token stays whole, whatever the merges say.
      starts: BOS is put before a text where the file does not say whether to.
    """

    cuts: Cuts = ()
    gpt2: bool = False
    spelled: Cuts = ()
    composed: bool = False
    whole: bool = False
    starts: bool = False

    def normalizer(self) -> normalizers.Normalizer | None:
        """What is done to a text first."""
        return normalizers.NFC() if self.composed else None

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """Cuts a text into words, spelled in the letters that stand for bytes."""
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.gpt2)
        steps = [*self.cuts, letters, *self.spelled]
        return pre_tokenizers.Sequence(steps) if len(steps) > 1 else letters


# The names that llama.cpp knows, for tokenizers of byte-level tokens that a model of our architectures may have.
# What is done is what the tokenizer.json of the family does, where that is known; llama.cpp normalises nothing.
_NAMES = {
    "default": Words(UNKNOWN),
    "gpt-2 phi-2 jais trillion mellum a.x-4.0 gigachat granite-docling exaone4": Words(gpt2=True),
    "mpt olmo": Words(gpt2=True, composed=True),
    "smollm starcoder refact codeshell exaone minerva-7b": Words(DIGITS, gpt2=True),
    "command-r": Words(DIGITS, gpt2=True, composed=True),
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2": Words(LLAMA3, whole=True, starts=True),
    "smaug-bpe": Words(LLAMA3, whole=True),  # Llama 3's vocabulary without its BOS: SmolLM3
    "dbrx glm4 chatglm-bpe": Words(LLAMA3),  # OpenAI's cl100k, Phi-4 too
    "minicpm5": Words(MINICPM5, whole=True),
    "tekken": Words(TEKKEN, whole=True, starts=True),  # Mistral Nemo and later
    "gpt-4o llama4 kanana2": Words(GPT4O),
    "qwen2 deepseek-r1-qwen f2llmv2 hunyuan": Words(QWEN2, composed=True),
    "megrez kormo": Words(QWEN2),
    "deepseek-llm": Words(DEEPSEEK_LLM),
    "deepseek-coder": Words(DEEPSEEK_CODER),
    "deepseek-v3 hunyuan-dense": Words(DEEPSEEK_V3),
    "falcon": Words(FALCON_SIGNS, gpt2=True, spelled=FALCON_DIGITS),
    "bailingmoe bailingmoe2 llada-moe": Words(BAILING),
    "seed-coder": Words(SEED_CODER),
    "poro-chat bloom gpt3-finnish": Words(BLOOM),
    "viking": Words(VIKING),
    "superbpe": Words(SUPERBPE),
}
WORDS = {name: words for names, words in _NAMES.items() for name in names.split()}
