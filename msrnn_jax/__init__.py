"""LLaMA as a multi-state RNN in JAX: (state, token) -> (state, logits), with a state of fixed size."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msrnn_jax.public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Loads the library at the first use of a public name, so that a command answers before JAX is imported."""
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    public = importlib.import_module("msrnn_jax.public")
    globals().update({name: getattr(public, name) for name in public.__all__}, __all__=public.__all__)
    if name not in globals():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
