"""The tokenizer in a GGUF file's metadata, as one of the `tokenizers` library."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from .checkpoint_files import TokenizerFacts
from .problems import tokenizer_errors

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # tokenizer.ggml.token_type
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2, LLAMA3, SMOLLM = ("default", "gpt-2"), ("llama-bpe", "llama3", "llama-v3"), ("smollm",)  # tokenizer.ggml.pre


def read_tokenizer(metadata: Mapping[str, Any], problems: list[str]) -> TokenizerFacts:
    """Builds the tokenizer; what cannot be honoured is added to `problems`.

    Texts end at the EOS, and at the ends of a turn and of a message where those are other tokens.
    """
    template = metadata.get("tokenizer.chat_template")
    kind = metadata.get("tokenizer.ggml.model")
    if kind in (None, "none", "no_vocab"):
        return TokenizerFacts(None, None, [], template)
    if kind not in ("gpt2", "llama"):
        problems.append(f"tokenizer.ggml.model {kind!r} (must be one of gpt2, llama)")
        return TokenizerFacts(None, None, [], template)
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    types = metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    before = len(problems)
    token, times = Counter(tokens).most_common(1)[0] if tokens else ("", 0)
    if times > 1:
        problems.append(f"tokenizer.ggml.tokens holds {token!r} more than once")
    if not tokens or len(types) != len(tokens):
        problems.append(f"tokenizer.ggml: {len(tokens)} tokens and {len(types)} types of tokens")
    defaults = {"bos": 1, "eos": 2, "unknown": 0} if kind == "llama" else {}  # as in llama.cpp
    ids = {
        name: _id(metadata, name, defaults.get(name), len(tokens), problems)
        for name in ("bos", "eos", "eot", "eom", "unknown")
    }
    if len(problems) > before:
        return TokenizerFacts(None, None, [], template)
    try:
        text = _build(metadata, tokens, types, ids)
    except ValueError as error:
        problems.append(str(error))
        return TokenizerFacts(None, None, [], template)
    stops = [ids[name] for name in ("eos", "eot", "eom")]
    return TokenizerFacts(text, ids["bos"], list(dict.fromkeys(stop for stop in stops if stop is not None)), template)


def _build(metadata: Mapping[str, Any], tokens: list[str], types: list[int], ids: Mapping[str, Any]) -> str:
    with tokenizer_errors("tokenizer.ggml"):
        if metadata["tokenizer.ggml.model"] == "gpt2":
            tokenizer = _byte_level(metadata, tokens)
        else:
            tokenizer = _sentencepiece(metadata, tokens, types, unknown=tokens[ids["unknown"]])
        _add_special_tokens(tokenizer, tokens, types)
        _add_ends(tokenizer, metadata, tokens, ids["bos"], ids["eos"])
        return tokenizer.to_str()


def _id(metadata: Mapping[str, Any], name: str, default: int | None, count: int, problems: list[str]) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    value = metadata.get(key, default)
    if value is None or (isinstance(value, int) and 0 <= value < count):
        return value
    problems.append(f"{key} is {value!r}; it must be below {count}, the number of tokens")
    return None


def _byte_level(metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre")
    known = (*GPT2, *LLAMA3, *SMOLLM)
    if pre not in known:
        raise ValueError(f"pre {pre!r} (must be one of {', '.join(known)})")
    merges = [tuple(merge.split(" ")) for merge in metadata.get("tokenizer.ggml.merges", [])]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    for merge in merges:
        if len(merge) != 2 or not {*merge, "".join(merge)} <= vocabulary.keys():
            raise ValueError(f"merge {' '.join(merge)!r} does not join two tokens into a third")
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in LLAMA3))
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)  # the words of GPT-2
    if pre in LLAMA3:
        words = pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_only])
    elif pre in SMOLLM:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), bytes_of_words]
        )
    else:
        tokenizer.pre_tokenizer = bytes_of_words
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], types: list[int], unknown: str) -> Tokenizer:
    scores = metadata.get("tokenizer.ggml.scores", [])
    if len(scores) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens and {len(scores)} scores")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = _merges(tokens, types, scores)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    spaces = normalizers.Replace(" ", "▁")
    joined = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
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
    merges = []
    for token, place in number.items():
        splits = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        splits = [(left, right) for left, right in splits if left in number and right in number]
        splits.sort(key=lambda split: (number[split[0]], number[split[1]]))
        merges += [(scores[place], *split) for split in splits]
    merges.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [(left, right) for _, left, right in merges]


def _add_special_tokens(tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Makes control and user-defined tokens match as a whole, wherever they stand in a text."""
    added = {CONTROL: True, UNKNOWN: True, USER_DEFINED: False}  # special: left out when decoding
    for token, kind in zip(tokens, types, strict=True):
        if kind in added:
            tokenizer.add_tokens([AddedToken(token, special=added[kind], normalized=False)])


def _add_ends(
    tokenizer: Tokenizer, metadata: Mapping[str, Any], tokens: list[str], bos: int | None, eos: int | None
) -> None:
    """Puts BOS before and EOS after every text, where the file says so or llama.cpp does by default."""
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    starts = metadata.get("tokenizer.ggml.add_bos_token", kind == "llama" or pre in LLAMA3)
    ends = metadata.get("tokenizer.ggml.add_eos_token", False)
    if (starts and bos is None) or (ends and eos is None):
        raise ValueError(f"{'bos' if starts and bos is None else 'eos'}_token_id is missing, yet that token is added")
    before = [(tokens[bos], bos)] if starts and bos is not None else []
    after = [(tokens[eos], eos)] if ends and eos is not None else []
    if before or after:
        single = [*(token for token, _ in before), "$A", *(token for token, _ in after)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single,
            pair=[*single, *(piece if piece != "$A" else "$B:1" for piece in single)],
            special_tokens=[*before, *after],
        )
