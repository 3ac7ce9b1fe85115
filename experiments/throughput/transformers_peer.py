"""Our weights as a model of transformers in torch: what tests and timings compare with."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers

import msrnn_jax as ms
from convert.huggingface.export_config import write_config
from convert.huggingface.reader import NAMES
from convert.tensors import as_stored, name_tree
from msrnn_jax.params import param_axes


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

    def tensor(leaf: jax.Array, axes: str) -> torch.Tensor:
        # torch reads no bfloat16 from numpy; what is widened here is narrowed again, without loss, by the model.
        array = np.asarray(leaf, max(leaf.dtype, jnp.dtype(jnp.float32), key=lambda kind: kind.itemsize))
        return torch.from_numpy(as_stored(array, axes).copy())

    tensors = jax.tree.map(tensor, params, param_axes(config))
    names = jax.tree.leaves(name_tree(config, NAMES))
    return dict(zip(names, jax.tree.leaves(tensors), strict=True))


class Peer:
    """The same weights, and full attention by torch's own kernels."""

    def __init__(self, config: ms.Config, params: ms.Params, threads: int):
        torch.set_num_threads(threads)
        self.model = to_torch(config, params)
        names = inspect.signature(self.model.forward).parameters
        self.cache = "cache" if "cache" in names else "past_key_values"  # its name before transformers 5.24

    def decoding(self, prompt: jax.Array, batch: int, count: int) -> Callable[[], None]:
        """A call that decodes greedily after the prompt, which is read once and here.

        A bare loop over the model, leaner than its `generate`. All rows hold the same prompt.
        """
        cache = transformers.DynamicCache(config=self.model.config)
        with torch.inference_mode():
            logits = self.model(_batched(prompt), **{self.cache: cache}, logits_to_keep=1).logits
            cache.batch_repeat_interleave(batch)
        first = logits[:, -1:].argmax(-1).repeat(batch, 1)

        def call() -> None:
            tokens = first
            with torch.inference_mode():
                for _ in range(count):
                    logits = self.model(tokens, **{self.cache: cache}).logits
                    tokens = logits[:, -1:].argmax(-1)
                cache.crop(-count)  # views: no time

        return call

    def first_token(self, prompt: jax.Array) -> Callable[[], int]:
        """A call that reads the prompt and says the likeliest token after it."""
        tokens = _batched(prompt)

        def call() -> int:
            cache = transformers.DynamicCache(config=self.model.config)
            with torch.inference_mode():
                logits = self.model(tokens, **{self.cache: cache}, logits_to_keep=1).logits
            return int(logits[0, -1].argmax())

        return call

    def losses(self, tokens: jax.Array, targets: jax.Array) -> Callable[[], Any]:
        """A call that reads all tokens at once and returns -log p(target) of each, [T] float32."""
        read, wanted = _batched(tokens), _batched(targets)[0]

        def call() -> np.ndarray:
            with torch.inference_mode():
                logits = self.model(read, use_cache=False).logits[0]
                losses = torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="none")
            return losses.numpy()

        return call


def _batched(tokens: jax.Array) -> torch.Tensor:
    return torch.from_numpy(np.array(tokens, np.int64))[None]
