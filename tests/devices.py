"""Programs that see eight devices, which XLA makes of one CPU."""

import os
import subprocess
import sys
import textwrap

START = """
import json, sys, jax, numpy as np
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
import msrnn_jax as ms
mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
"""


QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # without LLVM's passes tiny programs compile in less time


def environment(count: int = 8, *, quick: bool = False) -> dict[str, str]:
    """Of a process that sees so many devices.

    Args:
      quick: leave out XLA's optimisations, as the tests of this process do.
    """
    devices = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
    return {**os.environ, **devices, **(QUICK if quick else {})}


def on_devices(code: str, *arguments: object, quick: bool = False) -> str:
    """What a program prints that sees eight devices, and a 2 x 4 mesh of them; `arguments` are its sys.argv[1:]."""
    command = [sys.executable, "-c", START + textwrap.dedent(code), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment(quick=quick))
    assert result.returncode == 0, result.stderr
    return result.stdout
