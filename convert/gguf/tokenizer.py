"""The tokenizer in a GGUF file's metadata, as one of the `tokenizers` library."""

import textwrap
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..pre_tokenizers import WORDS
from ..problems import shown
from ..source import TokenizerFacts
from ..vocabulary import CONTROL, NORMAL, Vocabulary, build_tokenizer
from .metadata import flag, items, text

PREFIX = "tokenizer.ggml."
NONE = (None, "none", "no_vocab")  # tokenizer.ggml.model
DEFAULT_IDS = {"gpt2": {}, "llama": {"bos": 1, "eos": 2, "unknown": 0}}  # by the same; as in llama.cpp
NO_IDS = (-1, 2**32 - 1)  # of a token that there is not; the second is the first as it is mostly stored
# Tokens that end a text by their spelling, whatever type the file gives them: those of llama.cpp that tokenizers of our
# architectures have. It stops also at marks between the files of a repository, where transformers does not.
ENDS = frozenset(
    """
    <|eot_id|> <|eom_id|> <|end_of_text|> <|im_end|> <|endoftext|> <|end|> <end_of_turn> <end_of_utterance> </s>
    <EOT> _<EOT> ▁<EOT> <｜end▁of▁sentence｜>
    """.split()
)


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
    vocabulary = _read_vocabulary(metadata, model, pre, problems)
    if len(problems) > before:
        return nothing
    try:
        built = build_tokenizer(vocabulary)
    except ValueError as error:
        problems.append(str(error))
        return nothing
    ids = vocabulary.ids
    spelled = [number for number, token in enumerate(vocabulary.tokens) if token in ENDS]
    stops = [ids["eos"], ids["eot"], ids["eom"], *spelled]
    return TokenizerFacts(
        tokenizer=built,
        bos_token_id=ids["bos"],
        eos_token_ids=list(dict.fromkeys(stop for stop in stops if stop is not None)),
        names=_names(vocabulary, metadata),
        chat_template=template,
    )


def _names(vocabulary: Vocabulary, metadata: Mapping[str, Any]) -> dict[str, str]:
    """What chat templates write. Padding is good for nothing else here, so a wrong id of it is no reason to refuse."""
    ids = {f"{name}_token": vocabulary.ids[name] for name in ("bos", "eos")}
    padding = metadata.get(f"{PREFIX}padding_token_id")
    ids |= {"unk_token": vocabulary.ids["unknown"], "pad_token": padding if type(padding) is int else None}
    count = len(vocabulary.tokens)
    return {name: vocabulary.tokens[i] for name, i in ids.items() if i is not None and 0 <= i < count}


def _read_vocabulary(metadata: Mapping[str, Any], model: str, stated: str | None, problems: list[str]) -> Vocabulary:
    tokens = items(metadata, f"{PREFIX}tokens", str, problems)
    tokens = [token or f"[EMPTY_{number}]" for number, token in enumerate(tokens)]  # as in llama.cpp
    types = items(metadata, f"{PREFIX}token_type", int, problems) or [NORMAL] * len(tokens)
    scores = items(metadata, f"{PREFIX}scores", float, problems)
    token, times = Counter(tokens).most_common(1)[0] if tokens else ("", 0)
    if times > 1:
        problems.append(f"{PREFIX}tokens holds {shown(token)} more than once")
    if not tokens or len(types) != len(tokens):
        problems.append(f"tokenizer.ggml: {len(tokens)} tokens and {len(types)} types of tokens")
    if model == "llama" and len(scores) != len(tokens):
        problems.append(f"tokenizer.ggml: {len(tokens)} tokens and {len(scores)} scores")
    if any(score != score for score in scores):
        problems.append(f"{PREFIX}scores holds a score that is not a number")
    pre = text(metadata, f"{PREFIX}pre", problems) if stated is None else stated
    if model == "gpt2" and pre not in WORDS:
        problems += _explain(pre)
    ids = {
        name: _read_id(metadata, name, DEFAULT_IDS[model].get(name), len(tokens), problems)
        for name in ("bos", "eos", "eot", "eom", "unknown")
    }
    starts_by_default = model == "llama" or (pre in WORDS and WORDS[pre].starts)
    ends = {
        "bos": flag(metadata, f"{PREFIX}add_bos_token", starts_by_default, problems),
        "eos": flag(metadata, f"{PREFIX}add_eos_token", False, problems),
    }
    problems += [
        f"{PREFIX}{name}_token_id is missing, yet that token is added"
        for name, added in ends.items()
        if added and ids[name] is None
    ]
    return Vocabulary(
        model=model,
        pre=pre,
        tokens=tokens,
        types=[CONTROL if token in ENDS else kind for token, kind in zip(tokens, types, strict=False)],
        scores=scores,
        merges=items(metadata, f"{PREFIX}merges", str, problems),
        ids=ids,
        starts=ends["bos"],
        ends=ends["eos"],
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
