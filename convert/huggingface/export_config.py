"""Our config as the config.json of a model that transformers knows and that computes the same."""

from collections.abc import Callable
from typing import Any

from msrnn_jax.config import Config, Rope

from .config import read_config
from .layers import FULL, SLIDING
from .rope import SETTINGS


def write_config(config: Config) -> dict[str, Any]:
    """The fields of config.json, for the first family that has all that the config asks for.

    Whether it has is found by reading the fields back.

    Raises:
      ValueError: no family has.
    """
    for family, special in FAMILIES.items():
        fields = {"model_type": family, **_common(config), **special(config)}
        problems: list[str] = []
        again = read_config(fields, problems)
        if not problems and again is not None and again.replace(dtype=config.dtype) == config:
            return fields
    traits = ("attention_bias", "output_bias", "mlp_bias", "qk_norm", "unrotated_layers", "sliding_window")
    described = ", ".join(f"{name}={getattr(config, name)!r}" for name in traits)
    raise ValueError(f"no model of transformers ({', '.join(FAMILIES)}) computes what this one does: {described}")


def _common(config: Config) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.model_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "rope_scaling": _scaling(config.rope),
        "tie_word_embeddings": config.tied_embeddings,
        "hidden_act": "silu",
        "torch_dtype": config.dtype,
    }


def _scaling(rope: Rope) -> dict[str, Any] | None:
    spelled = {ours: theirs for theirs, ours in SETTINGS[rope.kind].items()}
    if not spelled:
        return None
    values = {theirs: getattr(rope, ours) for ours, theirs in spelled.items()}
    return {"rope_type": rope.kind, **{name: value for name, value in values.items() if value is not None}}


def _llama(config: Config) -> dict[str, Any]:
    return {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}


def _mistral(config: Config) -> dict[str, Any]:
    return {"sliding_window": config.sliding_window}


def _qwen2(config: Config) -> dict[str, Any]:
    return _layer_types(config)


def _qwen3(config: Config) -> dict[str, Any]:
    return {"attention_bias": config.attention_bias, **_layer_types(config)}


def _smollm3(config: Config) -> dict[str, Any]:
    return {
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "no_rope_layers": [int(layer not in config.unrotated_layers) for layer in range(config.num_layers)],
        **_layer_types(config),
    }


def _layer_types(config: Config) -> dict[str, Any]:
    windows = [config.window_of(layer) for layer in range(config.num_layers)]
    return {
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "layer_types": [FULL if window is None else SLIDING for window in windows],
    }


FAMILIES: dict[str, Callable[[Config], dict[str, Any]]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "smollm3": _smollm3,
}
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
