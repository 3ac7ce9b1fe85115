"""The model that an experiment runs, with what its results say of it."""

import datetime
from typing import Any, NamedTuple, TypeVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from msrnn_jax.checkpoint.identity import fingerprint
from msrnn_jax.checkpoint.load import load_onto
from msrnn_jax.checkpoint.tokenizer import load_tokenizer
from msrnn_jax.config import Config
from msrnn_jax.devices.sharding import DATA, parse_mesh, shardings, spell_mesh
from msrnn_jax.io.environment import keep_compilations
from msrnn_jax.io.provenance import json_hash
from msrnn_jax.params import Params
from msrnn_jax.policies import Policy
from msrnn_jax.state import MultiState
from msrnn_jax.text.tokenizer import Tokenizer

T = TypeVar("T")

DATE = datetime.datetime(2024, 1, 11)  # that chat templates write: results of two days must not differ


class Model(NamedTuple):
    """A checkpoint in memory, of one device or of those of a mesh."""

    config: Config
    params: Params
    tokenizer: Tokenizer
    about: dict[str, Any]  # what every number depends on
    mesh: Mesh | None = None

    @property
    def context(self) -> int:
        """Tokens of a segment: the paper's 4,096, or what the model was trained with if that is less."""
        return min(4096, self.config.max_length)

    def rows(self, batch: T) -> T:
        """Arrays [B, ...], their rows shared out over the mesh's axis `data`; on every device where it divides no B."""
        if self.mesh is None:
            return batch
        return jax.device_put(batch, NamedSharding(self.mesh, self._whole_rows(batch, PartitionSpec(DATA))))

    def states(self, policy: Policy, states: MultiState, positions: str = "absolute") -> MultiState:
        """States of a batch [B, ...] as `rows`, their heads shared out over the axis `model`."""
        if self.mesh is None:
            return states
        places = shardings(self.config, policy, self.mesh, positions=positions).state
        put = [NamedSharding(self.mesh, self._whole_rows(states, place.spec)) for place in jax.tree.leaves(places)]
        return jax.device_put(states, jax.tree.unflatten(jax.tree.structure(states), put))

    def _whole_rows(self, batch: Any, spec: PartitionSpec) -> PartitionSpec:
        assert self.mesh is not None
        divides = jax.tree.leaves(batch)[0].shape[0] % self.mesh.shape[DATA] == 0
        return spec if divides else PartitionSpec(None, *spec[1:])


def open_model(checkpoint: str, dtype: str | None = None, mesh: str | None = None) -> Model:
    """Reads a checkpoint and its tokenizer.

    Args:
      mesh: devices to share it and its batches out over, see `parse_mesh`; None for one.

    Raises:
      ValueError: for a checkpoint or a mesh that cannot be used.
    """
    keep_compilations()
    devices = None if mesh is None else parse_mesh(mesh)
    tokenizer = load_tokenizer(checkpoint)
    tokenizer.date = DATE
    config, params = load_onto(devices, checkpoint, dtype)
    about = {
        "model_sha256": fingerprint(config, params),
        "config_sha256": _beside(config, tokenizer),
        "dtype": config.dtype,
        "mesh": None if devices is None else spell_mesh(devices),
    }
    return Model(config, params, tokenizer, about, devices)


def _beside(config: Config, tokenizer: Tokenizer) -> str:
    """A hash of what else of a checkpoint changes numbers: how it computes, reads and writes text, and where it stops.

    Not the dtype, which stands beside it.
    """
    text = [tokenizer.backend.to_str(), tokenizer.bos, tokenizer.stop, tokenizer.template, tokenizer.names]
    return json_hash([{**config.to_dict(), "dtype": None}, text])
