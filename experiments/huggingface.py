"""Our weights as a model of transformers in torch: what tests and timings compare with."""

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers

import msrnn_jax as ms
from convert.export_config import write_config
from convert.huggingface import NAMES
from convert.tensors import as_stored, name_tree, stored_shape
from msrnn_jax.params import axes, sizes


def to_torch(config: ms.Config, params: ms.Params) -> transformers.PreTrainedModel:
    """The same model, weights copied, in the config's dtype, for inference; attention is torch's own (SDPA).

    Raises:
      ValueError: no model of transformers computes what the config says.
    """
    fields = write_config(config)
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    theirs = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields, **ends)
    model = transformers.AutoModelForCausalLM.from_config(
        theirs, dtype=getattr(torch, config.dtype), attn_implementation="sdpa"
    )
    tensors = _tensors(config, params)
    if config.tied_embeddings:
        tensors[NAMES["unembedding"]] = tensors[NAMES["embedding"]]
    model.load_state_dict(tensors)
    return model.eval()


def _tensors(config: ms.Config, params: ms.Params) -> dict[str, torch.Tensor]:
    """Every weight under its stored name, as an [out, in] matrix where it is one."""
    length = sizes(config)

    def tensor(leaf: jax.Array, letters: str) -> torch.Tensor:
        # torch reads no bfloat16 from numpy; what is widened here is narrowed again, without loss, by the model.
        array = np.asarray(leaf, max(leaf.dtype, jnp.dtype(jnp.float32), key=lambda kind: kind.itemsize))
        return torch.from_numpy(as_stored(array, letters, stored_shape(letters, length)).copy())

    tensors = jax.tree.map(tensor, params, axes(config))
    names = jax.tree.leaves(name_tree(config, NAMES))
    return dict(zip(names, jax.tree.leaves(tensors), strict=True))
