"""Devices that are described and not there, for which XLA's own compilers make programs."""

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh

from msrnn_jax.recurrence.kernel_choice import SWITCH

# As an H100 of 80 GB describes itself to XLA.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800
  memory_bandwidth: 3352320000000
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
TOPOLOGIES: dict[str, dict[str, Any]] = {
    "v5e": {"platform": "tpu", "topology_name": "v5e:2x2"},
    "h100": {"platform": "cuda", "topology_name": "h100", "target_config": H100, "topology": "1x1x4"},
}
DEVICES = {
    "v5e": AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu"),
    "h100": AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu"),
}
# So that libtpu asks no cloud what machine it is on.
HERE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # there is no TPU that two processes could fight for
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_STDERR_LOG_LEVEL": "3",
}


def target_devices(name: str) -> Sequence[Any]:
    """Four devices of one host to compile for.

    Raises:
      ValueError: for another name, and where its compiler is not installed.
    """
    if name not in TOPOLOGIES:
        raise ValueError(f"target is {name!r}; it must be one of {', '.join(TOPOLOGIES)}")
    from jax.experimental import topologies

    os.environ.update(HERE)
    os.environ.setdefault(SWITCH, "on")  # "auto" looks for a device that is there
    jax.devices("cpu")  # before the compilers are looked for, which would take their absence for a fault
    try:
        return topologies.get_topology_desc(**TOPOLOGIES[name]).devices
    except (RuntimeError, NotImplementedError, KeyError) as error:
        problem = str(error).splitlines()[0]
        raise ValueError(f"target {name} has no compiler here ({problem}); `make compiled` installs it") from None


def described(name: str, mesh: Mesh | None = None) -> contextlib.AbstractContextManager:
    """What is lowered within is told of the device, or a mesh of them: JAX 0.12 asks before it makes a kernel."""
    axes = {"x": 1} if mesh is None else mesh.shape
    types = (AxisType.Auto,) * len(axes)
    known = AbstractMesh(tuple(axes.values()), tuple(axes), types, abstract_device=DEVICES[name])
    return jax.sharding.use_abstract_mesh(known)
