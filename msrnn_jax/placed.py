"""A checkpoint on one device, or shared out over a mesh while it is read."""

from jax.sharding import Mesh

from msrnn_jax.checkpoint import load, read_config
from msrnn_jax.config import Config
from msrnn_jax.params import Params
from msrnn_jax.policies import Full
from msrnn_jax.sharding import shardings


def load_onto(mesh: Mesh | None, checkpoint: str, dtype: str | None = None) -> tuple[Config, Params]:
    """Loads a checkpoint onto a mesh as `shardings` lays it out, or onto one device where there is none.

    Raises:
      ValueError: as `load` and `shardings`.
    """
    if mesh is None:
        return load(checkpoint, dtype=dtype)
    places = shardings(read_config(checkpoint, dtype=dtype), Full(), mesh)  # weights lie the same for every policy
    return load(checkpoint, dtype=dtype, sharding=places.params)
