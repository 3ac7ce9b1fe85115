"""The metadata of a GGUF file as a config, every key under the name of its architecture accounted for.

What the metadata do not say, the presence of tensors does: biases, tied embeddings, the scaling of Llama 3.
"""

from collections.abc import Mapping
from typing import Any

from msrnn_jax.config import Config

from ..problems import is_count, shown
from ..tensors import Stored
from .architectures import ARCHITECTURES
from .metadata import number
from .rope import FACTORS, KEYS, match_factors, read_rope
from .tensors import NAMES

COUNTS = {  # after the name of the architecture and a dot
    "block_count": "num_layers",
    "context_length": "max_length",
    "embedding_length": "model_dim",
    "feed_forward_length": "mlp_dim",
    "attention.head_count": "num_heads",
}
EPSILON = "attention.layer_norm_rms_epsilon"
WINDOW = "attention.sliding_window"
WINDOWED = ("llama", "mistral3")  # architectures whose layers all slide; elsewhere no key says which do
OTHERS = (
    "vocab_size",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
)

# Keys that would change what the model computes; here are the values that do not. The first is named in errors.
FIXED: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "attention.temperature_scale": (0.0,),
    "attention.scale": (0.0,),  # 1 / sqrt(head width)
    "logit_scale": (1.0, 0.0),
    "embedding_scale": (1.0, 0.0),
    "residual_scale": (1.0, 0.0),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "tensor_data_layout": ("Meta AI original pth",),  # a note on where the file came from
}
KNOWN = {*COUNTS, EPSILON, WINDOW, *OTHERS, *KEYS, *FIXED}


def read_config(metadata: Mapping[str, Any], stored: Mapping[str, Stored], problems: list[str]) -> Config | None:
    """Our config, in float32 for now; None if it is too broken to make one.

    Everything that cannot be honoured is added to `problems`.
    """
    if metadata.get("general.type", "model") != "model":
        problems.append(f"general.type {shown(metadata['general.type'])} (must be 'model')")
    name = metadata.get("general.architecture")
    if type(name) is not str or name not in ARCHITECTURES:
        problems.append(f"general.architecture {shown(name)} (must be one of {', '.join(ARCHITECTURES)})")
        return None
    fields = {key.removeprefix(f"{name}."): key for key in metadata if key.startswith(f"{name}.")}
    problems += [
        f"{key} {shown(metadata[key])} (must be {FIXED[field][0]!r})"
        for field, key in fields.items()
        if field in FIXED and metadata[key] not in FIXED[field]
    ]
    problems += [
        f"unknown key {shown(key)} = {shown(metadata[key])}" for field, key in fields.items() if field not in KNOWN
    ]
    problems += [f"missing key '{name}.{field}'" for field in (*COUNTS, EPSILON) if field not in fields]
    architecture = ARCHITECTURES[name]
    embedding = stored.get(NAMES["embedding"])
    counts = _read_counts(metadata, name, embedding.shape[0] if embedding else None, problems)
    before = len(problems)
    rope = read_rope(metadata, name, architecture, problems)
    epsilon = number(metadata, f"{name}.{EPSILON}", 1e-5, problems)
    window = _read_window(metadata, name, problems)
    if len(problems) > before or counts is None:
        return None
    if counts["num_layers"] > len(stored):  # a damaged number must not be listed layer by layer
        problems.append(f"block_count is {counts['num_layers']}, but there are {len(stored)} tensors in all")
        return None
    if architecture.factors and FACTORS in stored:
        rope = match_factors(rope, counts["head_dim"], stored[FACTORS], problems)

    def any_of(*fields: str) -> bool:
        return any(NAMES[field].format(layer=0) in stored for field in fields)

    every = architecture.unrotated_every
    try:
        return Config(
            **counts,
            norm_eps=epsilon,
            rope=rope,
            qk_norm=architecture.qk_norm,
            sliding_window=window,
            unrotated_layers=tuple(range(every - 1, counts["num_layers"], every)) if every else (),
            tied_embeddings=NAMES["unembedding"] not in stored,
            attention_bias=any_of("query_bias", "key_bias", "value_bias"),
            output_bias=any_of("output_bias"),
            mlp_bias=any_of("gate_bias", "up_bias", "down_bias"),
        )
    except ValueError as error:
        problems.append(str(error))
        return None


def _read_counts(
    metadata: Mapping[str, Any], name: str, vocab_size: int | None, problems: list[str]
) -> dict[str, Any] | None:
    """The sizes by our names; None if one is missing or wrong."""
    layers = metadata.get(f"{name}.block_count")

    def read(field: str, default: int | None = None) -> Any:
        value = metadata.get(f"{name}.{field}", default)
        alike = isinstance(value, list) and len(value) == layers and all(item == value[0] for item in value)
        return value[0] if alike else value  # as one number a layer

    heads, width = read("attention.head_count"), read("embedding_length")
    usual = width // heads if is_count(heads) and is_count(width) and width % heads == 0 else None
    head_dim = read("attention.key_length", usual)
    counts = {
        **{field: read(field) for field in COUNTS},
        "vocab_size": read("vocab_size", vocab_size),
        "attention.head_count_kv": read("attention.head_count_kv", heads),
        "attention.key_length": head_dim,
    }
    wrong = [
        f"{name}.{field} is {shown(value)}; it must be a positive integer"
        + (", the same for every layer" if isinstance(value, list) else "")
        for field, value in counts.items()
        if value is not None and not is_count(value)
    ]
    if head_dim is None and is_count(heads) and is_count(width):
        wrong.append(f"{name}.embedding_length {width} is no multiple of {name}.attention.head_count {heads}")
    if head_dim is not None:
        wrong += [
            f"{name}.{field} {shown(read(field))} (must be {shown(head_dim)}, the width of a head)"
            for field in ("attention.value_length", "rope.dimension_count")
            if read(field, head_dim) != head_dim
        ]
    if counts["vocab_size"] is None:
        wrong.append(f"missing key '{name}.vocab_size', and there is no embedding to tell it")
    problems += wrong
    if wrong or None in counts.values():
        return None
    names = {**COUNTS, "attention.head_count_kv": "num_kv_heads", "attention.key_length": "head_dim"}
    return {names.get(field, field): value for field, value in counts.items()}


def _read_window(metadata: Mapping[str, Any], name: str, problems: list[str]) -> int | None:
    key = f"{name}.{WINDOW}"
    value = metadata.get(key, 0)
    if type(value) is int and value > 0 and name not in WINDOWED:
        problems.append(f"{key} {value} (must be 0 in a {name} file)")
        return None
    if type(value) is int and value >= 0:
        return value or None
    problems.append(f"{key} is {shown(value)}; it must be a number of tokens, or 0 for no window")
    return None
