"""A vocabulary as a tokenizer of the `tokenizers` library."""

from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from .pre_tokenizers import WORDS
from .problems import shown, tokenizer_errors

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # tokenizer.ggml.token_type


class Vocabulary(NamedTuple):
    """What the metadata hold of a tokenizer, every type checked."""

    model: str
    pre: str | None
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    ids: dict[str, int | None]  # of bos, eos, eot, eom, unknown
    starts: bool  # BOS is put before a text
    ends: bool  # EOS is put after a text
    space: bool  # a text starts as if after a space (SentencePiece)


def build_tokenizer(vocabulary: Vocabulary) -> str:
    with tokenizer_errors("tokenizer.ggml"):
        tokenizer = _byte_level(vocabulary) if vocabulary.model == "gpt2" else _sentencepiece(vocabulary)
        _add_special_tokens(tokenizer, vocabulary.tokens, vocabulary.types)
        _add_ends(tokenizer, vocabulary)
        return tokenizer.to_str()


def _byte_level(vocabulary: Vocabulary) -> Tokenizer:
    numbers = {token: number for number, token in enumerate(vocabulary.tokens)}
    merges = []
    for merge in vocabulary.merges:
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= numbers.keys():
            raise ValueError(f"merge {shown(merge)} does not join two tokens into a third")
        merges.append((left, right))
    words = WORDS[vocabulary.pre or ""]
    tokenizer = Tokenizer(models.BPE(vocab=numbers, merges=merges, ignore_merges=words.whole))
    tokenizer.pre_tokenizer = words.pre_tokenizer()
    normalizer = words.normalizer()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(vocabulary: Vocabulary) -> Tokenizer:
    numbers = {token: number for number, token in enumerate(vocabulary.tokens)}
    merges = _merges(vocabulary.tokens, vocabulary.types, vocabulary.scores)
    unknown = vocabulary.tokens[vocabulary.ids["unknown"] or 0]
    tokenizer = Tokenizer(
        models.BPE(vocab=numbers, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    spaces = normalizers.Replace(" ", "▁")
    joined = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.space:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        tokenizer.decoder = decoders.Sequence([*joined, decoders.Strip(" ", left=1)])
    else:
        tokenizer.normalizer = spaces
        tokenizer.decoder = decoders.Sequence(joined)
    return tokenizer


def _merges(tokens: list[str], types: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """The merges that a SentencePiece vocabulary implies: every split of a token into two, best score first.

    Ties go as in transformers' `generate_merges`. Control tokens and bytes are never merged from text.
    """
    number = {token: place for place, token in enumerate(tokens) if types[place] in (NORMAL, USER_DEFINED)}
    lengths = {len(token) for token in number}  # few, so that an absurdly long token costs little
    merges = []
    for token, place in number.items():
        cuts = [cut for cut in lengths if len(token) - cut in lengths]
        splits = [(token[:cut], token[cut:]) for cut in cuts]
        splits = [(left, right) for left, right in splits if left in number and right in number]
        splits.sort(key=lambda split: (number[split[0]], number[split[1]]))
        merges += [(scores[place], *split) for split in splits]
    merges.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [(left, right) for _, left, right in merges]


def _add_special_tokens(tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Makes control and user-defined tokens match as a whole, wherever they stand in a text."""
    added = {CONTROL: True, UNKNOWN: True, USER_DEFINED: False}  # special: left out when decoding
    tokenizer.add_tokens(
        [
            AddedToken(token, special=added[kind], normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in added
        ]
    )


def _add_ends(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Puts BOS before and EOS after every text, where that is to be done."""
    bos, eos = vocabulary.ids["bos"], vocabulary.ids["eos"]
    before = [(vocabulary.tokens[bos], bos)] if vocabulary.starts and bos is not None else []
    after = [(vocabulary.tokens[eos], eos)] if vocabulary.ends and eos is not None else []
    if before or after:
        single = [*(token for token, _ in before), "$A", *(token for token, _ in after)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single,
            pair=[*single, *(piece if piece != "$A" else "$B:1" for piece in single)],
            special_tokens=[*before, *after],
        )
