"""A vocabulary as a tokenizer of the `tokenizers` library."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from .pre_tokenizers import Words
from .problems import shown, tokenizer_errors

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # types of tokens, as SentencePiece and GGUF number them
# Tokens that end a text by their spelling, whatever type the file gives them: those of llama.cpp that tokenizers of our
# architectures have. It stops also at marks between the files of a repository, where transformers does not.
ENDS = frozenset(
    """
    <|eot_id|> <|eom_id|> <|end_of_text|> <|im_end|> <|endoftext|> <|end|> <end_of_turn> <end_of_utterance> </s>
    <EOT> _<EOT> ▁<EOT> <｜end▁of▁sentence｜>
    """.split()
)


class Vocabulary(NamedTuple):
    """Tokens by number, and how a text becomes them: byte-level ones by merges, those of SentencePiece by scores."""

    tokens: list[str]
    types: list[int]  # of the tokens
    before: int | None  # the token put before a text
    after: int | None  # the token put after a text
    # Byte-level tokens.
    words: Words | None = None  # how texts are cut into words; None makes it a vocabulary of SentencePiece
    merges: Sequence[str] = ()
    # SentencePiece.
    scores: Sequence[float] = ()
    unknown: int = 0
    space: bool = True  # a text starts as if after a space
    clean: Sequence[normalizers.Normalizer] | None = None  # what is done to a text first, where the source says it
    legacy: bool = True  # spaces also stand after special tokens, and before a text that starts with one
    flags: Mapping[str, Mapping[str, bool]] = {}  # how single tokens are matched (of AddedToken)


def build_tokenizer(vocabulary: Vocabulary, name: str) -> str:
    """The tokenizer's JSON.

    Args:
      name: the source, as errors show it.

    Raises:
      ValueError: no tokenizer can be made of it.
    """
    with tokenizer_errors(name):
        numbers = {token: number for number, token in enumerate(vocabulary.tokens)}
        if len(numbers) < len(vocabulary.tokens):
            twice = next(token for number, token in enumerate(vocabulary.tokens) if numbers[token] != number)
            raise ValueError(f"the token {shown(twice)} is there more than once")
        build = _sentencepiece if vocabulary.words is None else _byte_level
        tokenizer = build(vocabulary, numbers)
        _add_special_tokens(tokenizer, vocabulary)
        _add_ends(tokenizer, vocabulary)
        return tokenizer.to_str()


def _byte_level(vocabulary: Vocabulary, numbers: dict[str, int]) -> Tokenizer:
    assert vocabulary.words is not None
    merges = []
    for merge in vocabulary.merges:
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= numbers.keys():
            raise ValueError(f"merge {shown(merge)} does not join two tokens into a third")
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab=numbers, merges=merges, ignore_merges=vocabulary.words.whole))
    tokenizer.pre_tokenizer = vocabulary.words.pre_tokenizer()
    normalizer = vocabulary.words.normalizer()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(vocabulary: Vocabulary, numbers: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(
        models.BPE(
            vocab=numbers,
            merges=_merges(vocabulary),
            unk_token=vocabulary.tokens[vocabulary.unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", "▁")
    joined = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.space:
        spaces = normalizers.Sequence([_prefix(vocabulary), spaces])
        joined.append(decoders.Strip(" ", left=1))
    steps = [*(vocabulary.clean or []), *([spaces] if vocabulary.legacy else [])]
    tokenizer.normalizer = spaces if vocabulary.clean is None else normalizers.Sequence(steps)
    if not vocabulary.legacy:
        scheme = "first" if vocabulary.space else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence(joined)
    return tokenizer


def _prefix(vocabulary: Vocabulary) -> normalizers.Normalizer:
    """Puts a space before a text, but not before the tokens that are to be found in the text so made."""
    found = [re.escape(token) for token, flags in vocabulary.flags.items() if flags.get("normalized")]
    if not found:
        return normalizers.Prepend("▁")
    return normalizers.Replace(Regex(rf"\A(?!(?:{'|'.join(found)})?\z)"), "▁")


def _merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """The merges that a SentencePiece vocabulary implies: every split of a token into two, best score first.

    Ties go as in transformers' `generate_merges`. Control tokens and bytes are never merged from text.
    """
    mergeable = (NORMAL, USER_DEFINED)
    number = {token: place for place, token in enumerate(vocabulary.tokens) if vocabulary.types[place] in mergeable}
    lengths = {len(token) for token in number}  # few, so that an absurdly long token costs little
    merges = []
    for token, place in number.items():
        cuts = [cut for cut in lengths if len(token) - cut in lengths]
        splits = [(token[:cut], token[cut:]) for cut in cuts]
        splits = [(left, right) for left, right in splits if left in number and right in number]
        splits.sort(key=lambda split: (number[split[0]], number[split[1]]))
        merges += [(vocabulary.scores[place], *split) for split in splits]
    merges.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [(left, right) for _, left, right in merges]


def _add_special_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Makes control and user-defined tokens match as a whole, wherever they stand in a text."""
    added = (UNKNOWN, CONTROL, USER_DEFINED)
    tokenizer.add_tokens(
        [
            # Special ones are left out when decoding.
            AddedToken(
                token, **{"special": kind != USER_DEFINED, "normalized": False, **vocabulary.flags.get(token, {})}
            )
            for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
            if kind in added or token in vocabulary.flags
        ]
    )


def _add_ends(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Puts BOS before and EOS after every text, where that is to be done."""
    before, after = (
        [] if number is None else [(vocabulary.tokens[number], number)]
        for number in (vocabulary.before, vocabulary.after)
    )
    if before or after:
        single = [*(token for token, _ in before), "$A", *(token for token, _ in after)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single,
            pair=[*single, *(piece if piece != "$A" else "$B:1" for piece in single)],
            special_tokens=[*before, *after],
        )
