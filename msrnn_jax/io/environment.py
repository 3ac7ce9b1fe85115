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


def keep_compilations(folder: str | os.PathLike[str] | None = None) -> str | None:
    """Has JAX keep what it compiles in a folder, so that the next process need not compile it again.

    The commands call it. The folder takes at most 2 GiB, and `JAX_ENABLE_COMPILATION_CACHE=false` turns it all off.
    Keep it to yourself: JAX runs the programs that it finds there.

    Args:
      folder: by default the one that was given to JAX (`JAX_COMPILATION_CACHE_DIR`), which then stays as it is, else
        `xla` in `$MSRNN_CACHE`, else in `~/.cache/msrnn_jax`.

    Returns:
      The folder; None where nothing is kept, since that is turned off, or since the default cannot be written.

    Raises:
      ValueError: for a folder that cannot be written.
    """
    import jax
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    given = jax.config.values["jax_compilation_cache_dir"]
    if not jax.config.values["jax_enable_compilation_cache"]:
        return None
    if folder is None and given:
        return given
    path = default_cache() / "xla" if folder is None else Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        is_writable = os.access(path, os.W_OK)
    except OSError:
        is_writable = False
    if not is_writable and folder is not None:
        raise ValueError(f"folder is {str(folder)!r}; it must be one that can be written")
    if not is_writable:
        return None
    # A full disk costs time, not results, and would be told of once for every program.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    # A command compiles dozens of small programs before the large ones, each in a few hundredths of a second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    reset_cache()  # JAX may have opened another folder by now
    return str(path)
