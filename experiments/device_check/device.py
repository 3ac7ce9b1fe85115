"""What devices can do at most, and which way the recurrence of a chunk is computed on them."""

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

import jax

from msrnn_jax.recurrence.kernel_choice import SWITCH


class Peak(NamedTuple):
    """What the maker of a device promises; None where that is unknown."""

    bandwidth: float | None = None  # bytes a second
    flops: float | None = None  # in bfloat16, without sparsity


# By the name that JAX has for the kind of device.
PEAKS = {
    "NVIDIA H100 80GB HBM3": Peak(3.35e12, 989e12),
    "NVIDIA H100 PCIe": Peak(2.0e12, 756e12),
    "NVIDIA H200": Peak(4.8e12, 989e12),
    "NVIDIA A100-SXM4-40GB": Peak(1.555e12, 312e12),
    "NVIDIA A100-PCIE-40GB": Peak(1.555e12, 312e12),
    "NVIDIA A100-SXM4-80GB": Peak(2.039e12, 312e12),
    "NVIDIA A100 80GB PCIe": Peak(1.935e12, 312e12),
    "NVIDIA L4": Peak(300e9, 121e12),
    "NVIDIA GeForce RTX 4090": Peak(1.008e12, 165e12),
    "TPU v4": Peak(1.228e12, 275e12),
    **dict.fromkeys(("TPU v5 lite", "TPU v5e"), Peak(819e9, 197e12)),
    **dict.fromkeys(("TPU v5", "TPU v5p"), Peak(2.765e12, 459e12)),
    **dict.fromkeys(("TPU v6 lite", "TPU v6e"), Peak(1.64e12, 918e12)),
}


@contextlib.contextmanager
def kernels(setting: str) -> Iterator[None]:
    """What is traced within takes the kernel ("on") or the scan ("off"), and nothing that was traced before."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = setting
    jax.clear_caches()
    try:
        yield
    finally:
        os.environ.pop(SWITCH)
        if before is not None:
            os.environ[SWITCH] = before
        jax.clear_caches()
