"""The tokenizer in a GGUF file's metadata, as one of the `tokenizers` library."""

import textwrap
from collections.abc import Mapping
from typing import Any

from ..pre_tokenizers import WORDS, Words
from ..problems import shown
from ..source import TokenizerFacts
from ..vocabulary import CONTROL, ENDS, NORMAL, Vocabulary, build_tokenizer
from .metadata import flag, items, text

PREFIX = "tokenizer.ggml."
NONE = (None, "none", "no_vocab")  # tokenizer.ggml.model
DEFAULT_IDS = {"gpt2": {}, "llama": {"bos": 1, "eos": 2, "unknown": 0}}  # by the same; as in llama.cpp
NO_IDS = (-1, 2**32 - 1)  # of a token that there is not; the second is the first as it is mostly stored


def read_tokenizer(metadata: Mapping[str, Any], problems: list[str], pre: str | None = None) -> TokenizerFacts:
    """Builds the tokenizer; what cannot be honoured is added to `problems`.

    Texts end at the EOS, at the ends of a turn and of a message where those are other tokens, and at all tokens that
    are spelled like one of these.

    Args:
      pre: what to take for `tokenizer.ggml.pre`, whatever that says.
    """
    template = text(metadata, "tokenizer.chat_template", problems)
    nothing = TokenizerFacts(None, None, [], {}, template)
    model = metadata.get(f"{PREFIX}model")
    if pre is not None and model != "gpt2":
        problems.append(f"pre is {pre!r}, but {PREFIX}model is {shown(model)}; only gpt2 has a pre")
    if model in NONE:
        return nothing
    if type(model) is not str or model not in DEFAULT_IDS:
        problems.append(f"{PREFIX}model {shown(model)} (must be one of {', '.join(DEFAULT_IDS)})")
        return nothing
    before = len(problems)
    tokens = items(metadata, f"{PREFIX}tokens", str, problems)
    tokens = [token or f"[EMPTY_{number}]" for number, token in enumerate(tokens)]  # as in llama.cpp
    ids = {
        name: _read_id(metadata, name, DEFAULT_IDS[model].get(name), len(tokens), problems)
        for name in ("bos", "eos", "eot", "eom", "unknown")
    }
    vocabulary = _read_vocabulary(metadata, model, tokens, ids, pre, problems)
    if len(problems) > before:
        return nothing
    try:
        built = build_tokenizer(vocabulary, "tokenizer.ggml")
    except ValueError as error:
        problems.append(str(error))
        return nothing
    spelled = [number for number, token in enumerate(tokens) if token in ENDS]
    stops = [ids["eos"], ids["eot"], ids["eom"], *spelled]
    padding = metadata.get(f"{PREFIX}padding_token_id")  # good for nothing here, so a wrong one is no reason to refuse
    named = {"bos": ids["bos"], "eos": ids["eos"], "unk": ids["unknown"], "pad": padding}
    return TokenizerFacts(
        tokenizer=built,
        bos_token_id=ids["bos"],
        eos_token_ids=list(dict.fromkeys(stop for stop in stops if stop is not None)),
        names={f"{name}_token": tokens[i] for name, i in named.items() if type(i) is int and 0 <= i < len(tokens)},
        chat_template=template,
    )


def _read_vocabulary(
    metadata: Mapping[str, Any],
    model: str,
    tokens: list[str],
    ids: Mapping[str, int | None],
    stated: str | None,
    problems: list[str],
) -> Vocabulary:
    types = items(metadata, f"{PREFIX}token_type", int, problems) or [NORMAL] * len(tokens)
    scores = items(metadata, f"{PREFIX}scores", float, problems)
    if not tokens or len(types) != len(tokens):
        problems.append(f"tokenizer.ggml: {len(tokens)} tokens and {len(types)} types of tokens")
    if model == "llama" and len(scores) != len(tokens):
        problems.append(f"tokenizer.ggml: {len(tokens)} tokens and {len(scores)} scores")
    if any(score != score for score in scores):
        problems.append(f"{PREFIX}scores holds a score that is not a number")
    pre = text(metadata, f"{PREFIX}pre", problems) if stated is None else stated
    words = None
    if model == "gpt2":
        words = WORDS.get(pre or "", Words())
        if pre not in WORDS:
            problems += _explain(pre)
    ends = {
        "bos": flag(metadata, f"{PREFIX}add_bos_token", words is None or words.starts, problems),
        "eos": flag(metadata, f"{PREFIX}add_eos_token", False, problems),
    }
    problems += [
        f"{PREFIX}{name}_token_id is missing, yet that token is added"
        for name, added in ends.items()
        if added and ids[name] is None
    ]
    return Vocabulary(
        tokens=tokens,
        types=[CONTROL if token in ENDS else kind for token, kind in zip(tokens, types, strict=False)],
        before=ids["bos"] if ends["bos"] else None,
        after=ids["eos"] if ends["eos"] else None,
        words=words,
        merges=items(metadata, f"{PREFIX}merges", str, problems),
        scores=scores,
        unknown=ids["unknown"] or 0,
        space=flag(metadata, f"{PREFIX}add_space_prefix", True, problems),
    )


def _explain(pre: str | None) -> list[str]:
    """What is wrong with a `pre` that is not among the names, and what to do."""
    wrong = "is missing" if pre is None else f"is {shown(pre)}, which is unknown here"
    return [
        f"{PREFIX}pre {wrong}: nothing else in the file says how its tokenizer cuts texts into words; "
        "--pre NAME says it, where you know it, with one of these names:",
        *textwrap.wrap(", ".join(WORDS), 110, break_on_hyphens=False),
    ]


def _read_id(
    metadata: Mapping[str, Any], name: str, default: int | None, count: int, problems: list[str]
) -> int | None:
    key = f"{PREFIX}{name}_token_id"
    value = metadata.get(key, default)
    if type(value) is int and value in NO_IDS:
        value = default
    if value is None or (type(value) is int and 0 <= value < count):
        return value
    problems.append(f"{key} is {shown(value)}; it must be below {count}, the number of tokens")
    return None
