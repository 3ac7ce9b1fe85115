"""Programs that see eight devices, which XLA makes of one CPU."""

import importlib.metadata
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


# Fusion emitters take a third of the time that a tiny program compiles in. Later releases of XLA end at this flag, and
# cannot do without them.
_OLD = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11)
QUICK = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false" if _OLD else "",
}


def environment(count: int = 8, *, quick: bool = False) -> dict[str, str]:
    """Of a process that sees so many devices.

    Args:
      quick: leave out XLA's optimisations, as the tests of this process do.
    """
    flags = f"--xla_force_host_platform_device_count={count}"
    both = {**QUICK, "XLA_FLAGS": f"{flags} {QUICK['XLA_FLAGS']}"} if quick else {"XLA_FLAGS": flags}
    return {**os.environ, "JAX_PLATFORMS": "cpu", **both}


def on_devices(code: str, *arguments: object, quick: bool = False) -> str:
    """What a program prints that sees eight devices, and a 2 x 4 mesh of them; `arguments` are its sys.argv[1:]."""
    command = [sys.executable, "-c", START + textwrap.dedent(code), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment(quick=quick))
    assert result.returncode == 0, result.stderr
    return result.stdout
