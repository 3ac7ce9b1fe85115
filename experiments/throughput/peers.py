"""transformers' LLaMA in torch, doing what ours is timed at; the one file that imports torch."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers

import msrnn_jax as ms
from experiments.huggingface import to_torch


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
