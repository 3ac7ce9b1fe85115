"""What is kept of every token of a measurement: losses, nearness to the full model, its residual stream."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from msrnn_jax.config import Config
from msrnn_jax.evaluate import losses_of
from msrnn_jax.llama import unembed
from msrnn_jax.params import Params


def read_losses(config: Config, params: Params, x: Float[Array, "C D"], beside: dict[str, Array]) -> dict[str, Array]:
    """Nats [C] of every target."""
    return {"nats": losses_of(unembed(config, params, x), beside["targets"])}


def read_fidelity(config: Config, params: Params, x: Float[Array, "C D"], beside: dict[str, Array]) -> dict[str, Array]:
    """Losses, and nearness to the full model, whose logits are computed again from its residual stream."""
    return compare(unembed(config, params, x), unembed(config, params, beside["full"]), beside["targets"])


def read_streams(config: Config, params: Params, x: Float[Array, "C D"], beside: dict[str, Array]) -> dict[str, Array]:
    """What `read_fidelity` says of the full model itself, and its residual stream x [C, D]."""
    logits = unembed(config, params, x)
    return {**compare(logits, logits, beside["targets"]), "x": x}


def compare(logits: Float[Array, "C V"], full: Float[Array, "C V"], targets: Int[Array, " C"]) -> dict[str, Any]:
    """Losses, KL(full || policy) in nats, and 1 where the likeliest token is the full model's; each [C].

    Where logits are no numbers there is no likeliest token, and all three are nan.
    """
    ours, theirs = jax.nn.log_softmax(logits, axis=-1), jax.nn.log_softmax(full, axis=-1)
    same = jnp.argmax(logits, axis=-1) == jnp.argmax(full, axis=-1)
    known = ~jnp.isnan(jnp.max(logits, axis=-1) + jnp.max(full, axis=-1))
    return {
        "nats": losses_of(logits, targets),
        "kl": jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1),
        "agreement": jnp.where(known, same.astype(jnp.float32), jnp.nan),
    }
