"""Variables of the environment, and where files are kept between runs: downloads, programs that XLA has compiled."""

import os
import warnings
from pathlib import Path

MAX_BYTES = 2**31  # of compiled programs; the ones used longest ago are dropped
COORDINATOR, PROCESSES, PROCESS = "MSRNN_COORDINATOR", "MSRNN_PROCESSES", "MSRNN_PROCESS"
CLUSTER = "cluster"  # in place of the coordinator: JAX asks the cluster's own environment


def default_cache() -> Path:
    """`$MSRNN_CACHE`, else `$XDG_CACHE_HOME/msrnn_jax`, else `~/.cache/msrnn_jax`."""
    own = os.environ.get("MSRNN_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else Path(shared or Path.home() / ".cache") / "msrnn_jax"


def keep_compilations() -> None:
    """Has JAX keep what it compiles in the folder `xla` of the cache, so that the next process need not.

    A folder that the user has given to JAX stays (`JAX_COMPILATION_CACHE_DIR`), and
    `JAX_ENABLE_COMPILATION_CACHE=false` turns it all off. Where the folder cannot be written, nothing is kept.
    """
    import jax

    if jax.config.values["jax_compilation_cache_dir"] or not jax.config.values["jax_enable_compilation_cache"]:
        return
    folder = default_cache() / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(folder, os.W_OK):
        return
    # A full disk costs time, not results, and would be told of once for every program.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    # A command compiles dozens of small programs before the large ones, each in a few hundredths of a second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
