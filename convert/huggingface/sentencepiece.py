"""The tokenizer of a checkpoint that holds a SentencePiece `tokenizer.model` and no tokenizer.json."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Regex, normalizers

from ..vocabulary import CONTROL, ENDS, NORMAL, UNUSED, USER_DEFINED, Vocabulary, build_tokenizer

NAME = "tokenizer.model"
# Those whose texts become tokens by the SentencePiece model alone.
CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "CodeLlamaTokenizerFast")
UNIGRAM, BPE, WORD, CHAR = 1, 2, 3, 4  # TrainerSpec.model_type
KINDS = {UNIGRAM: "unigram", WORD: "word", CHAR: "char"}
LONGEST = 1000  # characters of a token; what a longer one is made of would take minutes to find
NAMED = ("unk_token", "bos_token", "eos_token", "pad_token", "sep_token", "cls_token", "mask_token")
LISTED = ("additional_special_tokens", "extra_special_tokens")
RULES = ("identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf")  # NormalizerSpec.name; others are somebody's own
APART = "\U000e0080"  # between letters that must not be looked up as one; it means nothing, and no text has it
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class TokenizerModel(NamedTuple):
    """What a tokenizer.model stands for."""

    text: str  # JSON of the `tokenizers` library
    names: dict[str, str]  # of BOS, EOS and what is unknown, under their keys of tokenizer_config.json


class _Pieces(NamedTuple):
    """The tokens by number, and what they are."""

    tokens: list[str]
    types: list[int]
    scores: list[float]


def read_tokenizer_model(
    path: Path,
    settings: Mapping[str, Any],
    added: Mapping[str, Any],
    vocab_size: int | None,
    problems: list[str],
) -> TokenizerModel | None:
    """The tokenizer in a file, with the tokens that the files beside it add; what is wrong is added to `problems`.

    A text becomes the tokens that SentencePiece makes of it, and special tokens are found inside it. (It may differ for
    accents in an order that Unicode does not use, and for a text that is one user-defined token.) `legacy: false`
    is honoured as in transformers: spaces stand before the start of a text only, not after special tokens, and a text
    that starts with a space gets no other. BOS is put before a text unless `add_bos_token` says no, as LLaMA itself,
    llama.cpp and transformers 4 do; transformers 5 leaves it out where the file does not say.

    Args:
      settings: what tokenizer_config.json and special_tokens_map.json say (see `read_settings`).
      added: the content of added_tokens.json, ids by token.
      vocab_size: rows of the embedding, if known; added tokens without a row are left out.
    """
    before = len(problems)
    name = settings.get("tokenizer_class")
    if name is not None and name not in CLASSES:
        problems.append(f"tokenizer_class {name!r} (beside {NAME} it must be one of {', '.join(CLASSES)})")
    if settings.get("auto_map"):
        problems.append("tokenizer_config.json: auto_map names code, which is never run; ask for a tokenizer.json")
    model = _parse(path, problems)
    if model is None or len(problems) > before:
        return None
    pieces = _Pieces(
        [piece.piece for piece in model.pieces],
        [piece.type for piece in model.pieces],
        [piece.score for piece in model.pieces],
    )
    if vocab_size is not None and len(pieces.tokens) > vocab_size:
        problems.append(f"{NAME} holds {len(pieces.tokens)} tokens, more than vocab_size ({vocab_size})")
        return None
    legacy, clean = settings.get("legacy") is not False, _cleaning(model.normalizer_spec)
    flags = _find_in_cleaned_text(pieces, clean) if legacy else {}
    flags |= _add_tokens(pieces, settings, added, vocab_size, problems)
    if len(problems) > before:
        return None
    spec = model.trainer_spec
    ids = {
        key: _id(pieces, settings.get(f"{key}_token"), number)
        for key, number in (("bos", spec.bos_id), ("eos", spec.eos_id))
    }
    space = settings.get("add_prefix_space")
    special = {token for token, kind in zip(pieces.tokens, pieces.types, strict=True) if kind == CONTROL}
    vocabulary = Vocabulary(
        tokens=pieces.tokens,
        types=[CONTROL if token in ENDS else kind for token, kind in zip(pieces.tokens, pieces.types, strict=True)],
        before=ids["bos"] if settings.get("add_bos_token", True) else None,
        after=ids["eos"] if settings.get("add_eos_token", False) else None,
        scores=pieces.scores,
        unknown=spec.unk_id,
        space=model.normalizer_spec.add_dummy_prefix if space is None else bool(space),
        clean=clean,
        legacy=legacy,
        flags={token: {"special": token in special, **own} for token, own in flags.items()},
    )
    try:
        text = build_tokenizer(vocabulary, NAME)
    except ValueError as error:
        problems.append(str(error).splitlines()[0])
        return None
    ids["unk"] = spec.unk_id
    return TokenizerModel(text, {f"{key}_token": pieces.tokens[i] for key, i in ids.items() if i is not None})


def _parse(path: Path, problems: list[str]) -> Any:
    """The file's protocol buffer, checked as far as the tokenizer needs it."""
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        problems.append(
            f"there is a {NAME} and no tokenizer.json, and to read it the package {error.name!r} is missing; install "
            "the extra 'convert', or pip install sentencepiece protobuf"
        )
        return None
    model = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue], made at import
    data = path.read_bytes()
    try:
        model.ParseFromString(data)
        texts = [piece.piece for piece in model.pieces]
        "".join(texts)  # what is not UTF-8 comes as bytes
    except (DecodeError, UnicodeError, TypeError):
        problems.append(f"{NAME} is not a SentencePiece model{_what(data)}")
        return None
    if not texts or not model.HasField("trainer_spec") or not model.HasField("normalizer_spec"):
        problems.append(f"{NAME} is not a whole SentencePiece model{_what(data)}")
        return None
    spec = model.trainer_spec
    if spec.model_type != BPE:
        problems.append(f"{NAME}: model_type {KINDS.get(spec.model_type)!r} (must be 'bpe')")
    if not spec.byte_fallback:
        problems.append(f"{NAME}: byte_fallback False (must be True)")
    if spec.treat_whitespace_as_suffix:
        problems.append(f"{NAME}: treat_whitespace_as_suffix True (must be False)")
    if not model.normalizer_spec.escape_whitespaces:
        problems.append(f"{NAME}: escape_whitespaces False (must be True)")
    rule = model.normalizer_spec
    if rule.precompiled_charsmap and rule.name not in RULES:
        problems.append(f"{NAME}: normalization_rule_name {rule.name!r} (must be one of {', '.join(RULES)})")
    if not 0 <= spec.unk_id < len(texts):
        problems.append(f"{NAME}: unk_id is {spec.unk_id}; it must be below {len(texts)}, the number of tokens")
    for number, piece in enumerate(model.pieces):
        if not 0 < len(piece.piece) <= LONGEST or not math.isfinite(piece.score):
            problems.append(f"{NAME} is damaged: token {number} has {len(piece.piece)} letters and score {piece.score}")
            break
    return model


def _what(data: bytes) -> str:
    """What a file that is no SentencePiece model may be instead."""
    if not data:
        return ": it is empty"
    first = data[:200].split(b"\n")[0].split(b" ")
    if len(first) == 2 and first[1].isdigit():
        return ": it is a tiktoken file, which LLaMA 3 keeps in original/; take its tokenizer.json"
    return f" ({len(data)} bytes); it is damaged, or something else"


def _add_tokens(
    pieces: _Pieces, settings: Mapping[str, Any], added: Mapping[str, Any], vocab_size: int | None, problems: list[str]
) -> dict[str, dict[str, bool]]:
    """Puts in the tokens that are not the model's own; returns how those that say so are matched, by token."""
    stated = dict(_stated_tokens(settings, added, problems))
    special = {_content(token) for token in _special_tokens(settings)} - {""}
    flags: dict[str, dict[str, bool]] = {}
    for number, (content, own) in sorted(stated.items()):
        if number > len(pieces.tokens):
            problems.append(f"added token {content!r} has id {number}, and nothing has id {len(pieces.tokens)}")
            return {}
        if vocab_size is not None and number >= vocab_size:
            break
        kind = CONTROL if own.get("special", content in special) else USER_DEFINED
        _put(pieces, number, content, kind)
        flags[content] = own
    for content in dict.fromkeys(_content(token) for token in _special_tokens(settings)):
        if content in pieces.tokens:
            _put(pieces, pieces.tokens.index(content), content, CONTROL)
        elif content and (vocab_size is None or len(pieces.tokens) < vocab_size):
            _put(pieces, len(pieces.tokens), content, CONTROL)
    return flags


def _find_in_cleaned_text(pieces: _Pieces, clean: list[normalizers.Normalizer]) -> dict[str, dict[str, bool]]:
    """Lets the model's own user-defined tokens be found as SentencePiece does: once spaces are put in, not before.

    So no space comes after them. One that is written with a space is never found, since spaces are "▁" by then.
    """
    steps, flags = normalizers.Sequence(clean), {}
    for number, token in enumerate(pieces.tokens):
        if pieces.types[number] == USER_DEFINED:
            if " " in token:
                pieces.types[number] = UNUSED
            elif steps.normalize_str(token) == token:
                flags[token] = {"normalized": True}
    return flags


def _put(pieces: _Pieces, number: int, content: str, kind: int) -> None:
    if number == len(pieces.tokens):
        pieces.tokens.append(content)
        pieces.types.append(kind)
        pieces.scores.append(0.0)
    elif pieces.tokens[number] != content or pieces.types[number] in (NORMAL, USER_DEFINED, CONTROL):
        pieces.tokens[number], pieces.types[number] = content, kind


def _stated_tokens(
    settings: Mapping[str, Any], added: Mapping[str, Any], problems: list[str]
) -> Iterator[tuple[int, tuple[str, dict[str, bool]]]]:
    """Tokens by id, and what is stated on how they are matched; those of tokenizer_config.json come last."""
    for content, number in added.items():
        if type(number) is int and number >= 0 and content:
            yield number, (content, {})
        else:
            problems.append(f"added_tokens.json: {content!r} has id {number!r}; it must be a number")
    decoder = settings.get("added_tokens_decoder") or {}
    for number, token in decoder.items() if isinstance(decoder, Mapping) else [("", decoder)]:
        if number.isascii() and number.isdigit() and _content(token):
            own = {flag: token[flag] for flag in FLAGS if type(token.get(flag)) is bool} if type(token) is dict else {}
            yield int(number), (_content(token), own)
        else:
            problems.append(f"tokenizer_config.json: added_tokens_decoder {number!r} is {token!r}; it must be a token")


def _special_tokens(settings: Mapping[str, Any]) -> list[Any]:
    tokens = [settings.get(key) for key in NAMED]
    for key in LISTED:
        more = settings.get(key) or []
        tokens += list(more.values()) if isinstance(more, Mapping) else more if isinstance(more, list) else []
    return tokens


def _content(token: Any) -> str:
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else ""


def _id(pieces: _Pieces, token: Any, default: int) -> int | None:
    if _content(token) in pieces.tokens:
        return pieces.tokens.index(_content(token))
    return default if 0 <= default < len(pieces.tokens) else None


def _cleaning(spec: Any) -> list[normalizers.Normalizer]:
    """How a model says that texts are cleaned, LLaMA's own saying nothing.

    `Precompiled` takes a letter and its accents for one, and gives what its table has for the first of them, so that
    the others are lost. So it sees them one by one, and what belongs together is composed before and after.
    """
    steps = []
    if spec.precompiled_charsmap:
        inside = Regex(r"\Y")  # of what is taken for one letter
        table = normalizers.Precompiled(spec.precompiled_charsmap)
        steps += [normalizers.NFC(), normalizers.Replace(inside, APART), table, normalizers.Replace(APART, "")]
        steps.append(normalizers.NFC())
    if spec.remove_extra_whitespaces:  # spaces alone: what else is white is not touched
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    return steps
