"""The contract of a compression policy: three pure functions and what the engine protects."""

import dataclasses
import os
import pathlib
from typing import Any, ClassVar

import jax
import numpy as np
from flax import struct
from jax import Array
from jax.core import Tracer
from jaxtyping import Int, Real

from msrnn_jax.state import LayerState, View

SCOPES = ("layer", "head")

Stats = Any  # leaves [#K, S, ...]
Score = Real[Array, "#K S"]


class Policy(struct.PyTreeNode, kw_only=True):
    """Decides which token a layer forgets; a frozen value that passes through `jit` as an argument.

    A subclass overrides `score` and, where scores depend on attention, `init` and `observe`. Its own
    options are fields: `struct.field(pytree_node=False, default=...)` for static ones; a field without
    that is data, such as the weights of a scorer. Another value of it compiles nothing anew, but no gradient
    of logits or losses reaches it: it decides which slots are freed, and that choice is not differentiable, so
    the gradient is exactly 0. Search for it by evolution strategies instead. A policy must not depend on the
    order of the slots.

    Attributes:
      scope: "layer", all heads forget the same token, or "head", every KV head for itself.
      sinks: the first `sinks` tokens of the text are protected.
      recent: the newest `recent` tokens are protected; None means half the budget.
    """

    scope: str = struct.field(pytree_node=False, default="layer")
    sinks: int = struct.field(pytree_node=False, default=0)
    recent: int | None = struct.field(pytree_node=False, default=0)

    # Scores depend on the token alone, not on what was attended to: `extend` then need not step over masks, in
    # the position mode "absolute", with recent=0 and without `observe`. Said anew by every class with a `score`.
    static: ClassVar[bool] = False
    forgets: ClassVar[bool] = True  # False: a state that would outgrow its budget is an error

    def __init_subclass__(cls, **kwargs: Any):
        # JAX compares the structures of trees by their static values alone, so without `kind` two classes with equal
        # options would be one to `jit`, which then runs now and then what it compiled for the other.
        cls.__annotations__ = {**cls.__dict__.get("__annotations__", {}), "kind": type}
        if "score" in cls.__dict__ and "static" not in cls.__dict__:
            cls.static = False
        cls.kind = struct.field(pytree_node=False, default=cls, repr=False, kw_only=True)
        super().__init_subclass__(**kwargs)

    def __post_init__(self):
        name = type(self).__name__
        if self.scope not in SCOPES:
            raise ValueError(f"{name}: scope is {self.scope!r}; it must be one of {', '.join(SCOPES)}")
        if not _is_size(self.sinks):
            raise ValueError(f"{name}: sinks is {self.sinks!r}; it must be an integer of at least 0")
        if self.recent is not None and not _is_size(self.recent):
            raise ValueError(f"{name}: recent is {self.recent!r}; it must be an integer of at least 0, or half")

    @property
    def protects(self) -> bool:
        """Whether any token is protected from being forgotten."""
        return self.sinks > 0 or self.recent != 0

    @property
    def observes(self) -> bool:
        """Whether it keeps statistics of what is attended to."""
        return type(self).observe is not Policy.observe

    def init(self, rows: int, slots: int) -> Stats:
        """The statistics of free slots; a newly written slot gets them again. Leaves [rows, slots, ...]."""
        del rows, slots
        return None

    def observe(self, stats: Stats, view: View) -> Stats:
        """Statistics after the newest token's attention; called once per token, nowhere else."""
        del view
        return stats

    def score(self, layer: LayerState, t: Int[Array, ""]) -> Score:
        """What each slot is worth after `t` tokens were seen; the lowest is forgotten, NaN before all."""
        raise NotImplementedError(f"{type(self).__name__} must define score(layer, t)")

    def __str__(self) -> str:
        """The text that `parse_policy` reads: a name and the options that differ from the defaults."""
        own = option_fields(type(self)).values()
        changed = {field.name: getattr(self, field.name) for field in own if _differs(self, field)}
        options = [f"{name}={_text(name, value)}" for name, value in changed.items()]
        return ":".join([policy_name(type(self))] + ([",".join(options)] if options else []))


def policy_name(policy: type[Policy]) -> str:
    """How text names a policy: the class name in lower case for ours, `module:Class` for others.

    A class loaded from a file is named by its path from the current folder, where it lies in it, else by the
    whole path: what is printed can be read again by any process started in the same folder.
    """
    module = policy.__module__
    if module.startswith("msrnn_jax.policies"):
        return policy.__name__.lower()
    if os.path.isabs(module):  # as `parse_policy` calls the module that it makes of a file
        file, here = pathlib.Path(module), pathlib.Path.cwd()
        if file.is_relative_to(here):
            near = str(file.relative_to(here))
            module = f"./{near}" if ":" in near else near  # which says that the colon is one of a path
    return f"{module}:{policy.__qualname__}"


def option_fields(policy: type[Policy]) -> dict[str, dataclasses.Field]:
    """The fields that text can set, by name."""
    return {field.name: field for field in dataclasses.fields(policy) if field.name != "kind"}


def _differs(policy: Policy, field: dataclasses.Field) -> bool:
    value = getattr(policy, field.name)
    same_type = type(value) is type(field.default)
    return not (same_type and bool(np.all(value == field.default)))


def _text(name: str, value: Any) -> str:
    if name == "recent" and value is None:
        return "half"
    if isinstance(value, Tracer):
        return "<traced>"
    return str(np.asarray(value).tolist()) if isinstance(value, jax.Array | np.ndarray) else str(value)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
