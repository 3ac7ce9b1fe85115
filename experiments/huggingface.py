"""Our weights as transformers' LLaMA in torch: what tests and timings compare with."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers

import msrnn_jax as ms
from convert.huggingface import NAMES
from convert.tensors import STORED_AXES, name_tree, stored_shape
from msrnn_jax.params import axes, sizes


def to_torch(config: ms.Config, params: ms.Params) -> transformers.LlamaForCausalLM:
    """The same model, weights copied, in the config's dtype, for inference; attention is torch's own (SDPA)."""
    model = transformers.AutoModelForCausalLM.from_config(
        to_llama(config), dtype=getattr(torch, config.dtype), attn_implementation="sdpa"
    )
    tensors = _tensors(config, params)
    if config.tied_embeddings:
        tensors[NAMES["unembedding"]] = tensors[NAMES["embedding"]]
    model.load_state_dict(tensors)
    return model.eval()


def to_llama(config: ms.Config) -> transformers.LlamaConfig:
    """The config in transformers' words.

    Raises:
      ValueError: for what its LLaMA does not have.
    """
    others = [name for name in ("qk_norm", "unrotated_layers", "sliding_window") if getattr(config, name)]
    others += ["yarn"] if config.rope.kind == "yarn" else []
    others += ["output_bias"] if config.output_bias != config.attention_bias else []
    if others:
        raise ValueError(f"the config has {', '.join(others)}; transformers' LLaMA has no such thing")
    rope: dict[str, Any] = {"rope_type": config.rope.kind, "rope_theta": config.rope.theta}
    if config.rope.kind != "default":
        rope["factor"] = config.rope.factor
    if config.rope.kind == "llama3":
        rope["low_freq_factor"] = config.rope.low_freq_factor
        rope["high_freq_factor"] = config.rope.high_freq_factor
        rope["original_max_position_embeddings"] = config.rope.original_length
    return transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.model_dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.mlp_dim,
        max_position_embeddings=config.max_length,
        rms_norm_eps=config.norm_eps,
        rope_parameters=rope,
        tie_word_embeddings=config.tied_embeddings,
        attention_bias=config.attention_bias,
        mlp_bias=config.mlp_bias,
        bos_token_id=None,
        eos_token_id=None,
    )


def _tensors(config: ms.Config, params: ms.Params) -> dict[str, torch.Tensor]:
    """Every weight under its stored name, as an [out, in] matrix where it is one."""
    length = sizes(config)

    def tensor(leaf: jax.Array, letters: str) -> torch.Tensor:
        # torch reads no bfloat16 from numpy; what is widened here is narrowed again, without loss, by the model.
        array = np.asarray(leaf, max(leaf.dtype, jnp.dtype(jnp.float32), key=lambda kind: kind.itemsize))
        order = [letters.index(letter) for letter in STORED_AXES[letters]]
        return torch.from_numpy(array.transpose(order).reshape(stored_shape(letters, length)).copy())

    tensors = jax.tree.map(tensor, params, axes(config))
    names = jax.tree.leaves(name_tree(config, NAMES))
    return dict(zip(names, jax.tree.leaves(tensors), strict=True))
