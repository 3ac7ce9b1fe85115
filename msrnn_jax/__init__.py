"""LLaMA as a multi-state RNN in JAX: (state, token) -> (state, logits), with a state of fixed size."""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msrnn_jax.public import *  # noqa: F403


NAMED_ALIKE = ("adopt", "compress", "extend", "fork", "generate", "prefill")  # functions of modules of the same name


class _Package(types.ModuleType):
    """Loads the library at the first use of a public name, so that a command answers before JAX is imported."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") and name != "__all__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        public = importlib.import_module("msrnn_jax.public")
        for public_name in public.__all__:
            self.__dict__[public_name] = getattr(public, public_name)
        self.__dict__["__all__"] = public.__all__
        if name not in self.__dict__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return self.__dict__[name]

    def __setattr__(self, name: str, value: Any) -> None:
        # Python binds every submodule here when it is imported.
        named_alike = name in NAMED_ALIKE and isinstance(value, types.ModuleType)
        super().__setattr__(name, vars(value).get(name, value) if named_alike else value)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *self.__all__})


sys.modules[__name__].__class__ = _Package
