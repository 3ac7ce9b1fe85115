"""The families of LLaMA that transformers tells apart by `model_type`, and what each config class says by itself."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .layers import Layers, all_alike, by_first_layer, by_rotation, everywhere

HINTS = {
    "Yi": "an early revision, whose code came with it; the current ones say llama",
    "qwen": "the first Qwen, whose code comes with it; qwen2 is the next one",
    "qwen2_moe": "experts are not taken",
    "qwen3_moe": "experts are not taken",
    "mixtral": "experts are not taken",
}


class Family(NamedTuple):
    """What holds where a config.json says nothing, and what its keys mean.

    Values are those of the config class in transformers 5.23.
    """

    max_length: int
    read_layers: Callable[[Mapping[str, Any], int, list[str]], Layers]  # which slide, which are not rotated
    layer_keys: tuple[str, ...] = ()  # what `read_layers` looks at
    kv_heads: int | None = None  # None: as many as query heads
    whole_heads: bool = False  # hidden_size must be a multiple of the number of heads, whatever head_dim says
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    theta: float = 10000.0
    tied: bool = False
    biases: Mapping[str, tuple[str, ...]] = {}  # our fields that a key sets, by key
    always: tuple[str, ...] = ()  # our fields that are true whatever the config says
    fixed: Mapping[str, tuple[Any, ...]] = {}  # keys that the class does not look at, and what they may say
    ignored: tuple[str, ...] = ()  # keys that say nothing in this class
    never_null: tuple[str, ...] = ()  # keys that it does not take a null for, besides those that no class does


ATTENTION = {"attention_bias": ("attention_bias", "output_bias")}
MLP = {"mlp_bias": ("mlp_bias",)}
NO_BIAS = {"attention_bias": (False, None), "mlp_bias": (False, None)}
WINDOWS = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")

QWEN_NEVER_NULL = ("head_dim", "use_sliding_window", "max_window_layers", "attention_dropout")

FAMILIES = {
    "llama": Family(
        max_length=2048,
        read_layers=all_alike,
        layer_keys=("layer_types",),
        whole_heads=True,
        biases=ATTENTION | MLP,
        fixed={"sliding_window": (None,), "use_sliding_window": (False, None)},
    ),
    "mistral": Family(
        max_length=131072,
        read_layers=everywhere,
        layer_keys=("sliding_window", "layer_types"),
        kv_heads=8,
        fixed={**NO_BIAS, "use_sliding_window": (None,)},
        never_null=("num_key_value_heads", "attention_dropout"),
    ),
    "qwen2": Family(
        max_length=32768,
        read_layers=by_first_layer,
        layer_keys=WINDOWS,
        kv_heads=32,
        always=("attention_bias",),
        fixed={"attention_bias": (True, None), "mlp_bias": (False, None), "use_mrope": (False, None)},
        never_null=QWEN_NEVER_NULL,
    ),
    "qwen3": Family(
        max_length=32768,
        read_layers=by_first_layer,
        layer_keys=WINDOWS,
        kv_heads=32,
        head_dim=128,
        biases=ATTENTION,
        always=("qk_norm",),
        fixed={"mlp_bias": (False, None), "use_mrope": (False, None)},
        never_null=QWEN_NEVER_NULL,
    ),
    "smollm3": Family(
        max_length=32768,
        read_layers=by_rotation,
        layer_keys=("sliding_window", "use_sliding_window", "layer_types", "no_rope_layers", "no_rope_layer_interval"),
        kv_heads=4,
        theta=2000000.0,
        tied=True,
        biases=ATTENTION | MLP,
        ignored=("max_window_layers",),
        never_null=("head_dim", "use_sliding_window", "no_rope_layer_interval", "attention_dropout"),
    ),
}


def read_family(fields: Mapping[str, Any], problems: list[str]) -> Family | None:
    """The family of a config, LLaMA where it names none, or None where it is another one, which is a problem."""
    name = fields.get("model_type")
    if name is None:
        return FAMILIES["llama"]
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        hint = f": {HINTS[name]}" if isinstance(name, str) and name in HINTS else ""
        problems.append(f"model_type {name!r} (must be one of {', '.join(FAMILIES)}){hint}")
    return family
