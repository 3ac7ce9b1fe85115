"""A forgetting gate: how fast a token fades, worked out from the token alone when it comes."""

import json
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from msrnn_jax.config import Config
from msrnn_jax.policies.files import read_arrays
from msrnn_jax.policies.scoring import einsum, widen
from msrnn_jax.state import Arrival

ABOUT, FORMAT = "msrnn_jax gate", 1


class Gate(NamedTuple):
    """One small network for every layer and KV head, of one hidden layer with tanh.

    It reads key (before rotation) and value of a token, I = 2 H, and perhaps the layer's input, I = 2 H + D.
    """

    inward: Array  # [L, K, I, M]
    inward_bias: Array  # [L, K, M]
    outward: Array  # [L, K, M]
    outward_bias: Array  # [L, K]

    def log_beta(self, arrival: Arrival) -> Float[Array, " K"]:
        """The logarithm of what is left of a token's weight after every further token.

        Raises:
          ValueError: for a token of a model of other shapes.
        """
        x = jnp.concatenate([widen(arrival.key), widen(arrival.value)], axis=-1)  # [K, 2 H]
        layers, heads, inputs, _ = self.inward.shape
        if inputs != x.shape[1]:
            hidden = jnp.broadcast_to(widen(arrival.hidden), (x.shape[0], *arrival.hidden.shape))
            x = jnp.concatenate([x, hidden], axis=-1)
        if arrival.layer >= layers or (heads, inputs) != x.shape:
            raise ValueError(
                f"the gate has {layers} layers of {heads} heads and reads {inputs} numbers; layer {arrival.layer} of "
                f"this model has {x.shape[0]} KV heads and tokens of {x.shape[1]}"
            )
        mine = jax.tree.map(lambda leaf: leaf[arrival.layer], self)
        middle = jnp.tanh(einsum("ki,kim->km", x, mine.inward) + mine.inward_bias.astype(x.dtype))
        out = einsum("km,km->k", middle, mine.outward) + mine.outward_bias.astype(x.dtype)
        return jax.nn.log_sigmoid(out)


def init_gate(config: Config, key: Array, *, width: int = 16, lifetime: int | float = 64, hidden: bool = False) -> Gate:
    """A gate under which every token fades alike, so that the oldest goes first, as under Window.

    Args:
      width: M, of the hidden layer.
      lifetime: sum of the weights of all tokens, far into a text.
      hidden: whether it reads the layer's input too.

    Raises:
      ValueError: for a width below 1, and for a lifetime of 1 or less.
    """
    if width < 1:
        raise ValueError(f"width is {width}; it must be at least 1")
    if not lifetime > 1:
        raise ValueError(f"lifetime is {lifetime}; it must be above 1")
    inputs = 2 * config.head_dim + (config.model_dim if hidden else 0)
    rows = config.num_layers, config.num_kv_heads
    return Gate(
        inward=jax.random.normal(key, (*rows, inputs, width), jnp.float32) * inputs**-0.5,
        inward_bias=jnp.zeros((*rows, width), jnp.float32),
        outward=jnp.zeros((*rows, width), jnp.float32),
        outward_bias=jnp.full(rows, np.log(lifetime - 1), jnp.float32),
    )


def save_gate(path: str | os.PathLike[str], gate: Gate, *, ageing: bool = True, **about: Any) -> None:
    """Writes a gate for `learned:PATH`, atomically.

    Args:
      ageing: whether scores fall with age, see `Learned`.
      about: JSON that is kept with it.

    Raises:
      ValueError: for a path that cannot be written.
    """
    import safetensors.numpy

    from msrnn_jax.io.atomic import check_writable, write_bytes

    check_writable("gate", path)
    header = json.dumps({"format": FORMAT, "ageing": ageing, **about})  # of several entries the order would be drawn
    write_bytes(path, safetensors.numpy.save({k: np.asarray(v) for k, v in gate._asdict().items()}, {ABOUT: header}))


def read_gate(path: str) -> tuple[Gate, bool]:
    """The gate of a file, and whether scores fall with age.

    Raises:
      ValueError: where it cannot be read, and for what is no gate.
    """
    arrays, header = read_arrays("gate", path)
    shapes = {name: leaf.shape for name, leaf in arrays.items()}
    try:
        about = json.loads(header[ABOUT])
        ageing = about["ageing"] if about["format"] == FORMAT else None
    except (KeyError, ValueError, TypeError):
        ageing = None
    if not isinstance(ageing, bool) or not _fit(shapes):
        raise ValueError(f"gate {path!r} is no file that save_gate has written; it has {shapes}")
    if not all(np.isfinite(leaf).all() for leaf in arrays.values()):
        raise ValueError(f"gate {path!r} has numbers that are not finite")
    return Gate(**{name: jnp.asarray(leaf) for name, leaf in arrays.items()}), ageing


def _fit(shapes: dict[str, Any]) -> bool:
    if set(shapes) != set(Gate._fields) or len(shapes["inward"]) != 4:
        return False
    layers, heads, _, width = shapes["inward"]
    rows = layers, heads
    return [shapes[name] for name in Gate._fields[1:]] == [(*rows, width), (*rows, width), rows]
