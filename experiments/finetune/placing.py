"""Where training is: on one device, or with the rows of a batch shared out among all there are."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Places:
    """Puts whole trees on every device, and batches a few rows to each.

    Attributes:
      devices: how many there are.
    """

    def __init__(self, batch: int):
        self.devices = jax.local_device_count()
        if batch % self.devices:
            raise ValueError(f"batch is {batch}; it must be a multiple of {self.devices}, the number of devices")
        self._mesh = Mesh(jax.local_devices(), ("data",)) if self.devices > 1 else None

    def whole(self, tree: Any) -> Any:
        """Every device has all of it."""
        return tree if self._mesh is None else jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec()))

    def rows(self, tree: Any) -> Any:
        """Every device has some rows of it; leaves [B, ...]."""
        return tree if self._mesh is None else jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec("data")))
