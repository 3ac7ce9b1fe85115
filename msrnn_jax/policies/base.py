"""The contract of a compression policy: pure functions of statistics, and what the engine does by itself."""

import dataclasses
import os
import pathlib
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.core import Tracer
from jaxtyping import Bool, Float, Int, Real

from msrnn_jax.state import Arrival, LayerInfo, LayerState, View

SCOPES = ("layer", "head")

Stats = Any  # leaves [#K, S, ...]
RowStats = Any  # leaves [#K, ...]
Score = Real[Array, "#K S"]


class Policy(struct.PyTreeNode, kw_only=True):
    """Decides which token a layer forgets; a frozen value that passes through `jit` as an argument.

    A subclass overrides `score` and, where scores depend on attention, `init` and `observe`. The other functions
    are for what few need. Its own options are fields: `struct.field(pytree_node=False, default=...)` for static
    ones; a field without that is data, such as the weights of a scorer. Another value of it compiles nothing anew,
    but no gradient of logits or losses reaches it through `score`: which slots are freed is not differentiable, so
    the gradient is exactly 0. Search for it by evolution strategies instead, or let it act through `bias`. A policy
    must not depend on the order of the slots.

    Attributes:
      scope: "layer", all heads forget the same token, or "head", every KV head for itself.
      sinks: the first `sinks` tokens of the text are protected.
      recent: the newest `recent` tokens are protected; a share of the budget where it is a float, half of it for None.
      every: a row that holds `budget + every` tokens after a step is cut to its budget at once.
      prompt: what `prefill` reads first is protected (see `LayerState.pinned`), whatever its length.
      adaptive: with the scope "head", the heads of a layer share their budgets out by score: each keeps at least this
        share of the budget, its best, protected tokens first, and the rest goes to the best of all heads. Feng et al.,
        Ada-KV, 2024 (arXiv:2407.11550), whose share is 0.2. None: every head has the same budget.
      pyramid: budgets fall linearly from the first layer to the last, which has 1 / `pyramid` of the mean, without
        recent tokens. Cai et al., PyramidKV, 2024 (arXiv:2406.02069), whose code has 20, and gives no layer
        more than the prompt's length. None: every layer has the same.
    """

    scope: str = struct.field(pytree_node=False, default="layer")
    sinks: int = struct.field(pytree_node=False, default=0)
    recent: int | float | None = struct.field(pytree_node=False, default=0)
    every: int = struct.field(pytree_node=False, default=1)
    prompt: bool = struct.field(pytree_node=False, default=False)
    adaptive: int | float | None = struct.field(pytree_node=False, default=None)
    pyramid: int | float | None = struct.field(pytree_node=False, default=None)

    # Scores depend on the token alone, not on what was attended to: `extend` then need not step over masks, in
    # the position mode "absolute", with recent=0 and without `observe`. Said anew by every class with a `score`.
    static: ClassVar[bool] = False
    named_by: ClassVar[str] = ""  # the option that text may give without its name, such as a file
    forgets: ClassVar[bool] = True  # False: a state that would outgrow its budget is an error

    def __init_subclass__(cls, **kwargs: Any):
        # JAX compares the structures of trees by their static values alone, so without `kind` two classes with equal
        # options would be one to `jit`, which then runs now and then what it compiled for the other.
        cls.__annotations__ = {**cls.__dict__.get("__annotations__", {}), "kind": type}
        if "score" in cls.__dict__ and "static" not in cls.__dict__:
            cls.static = False
        taken = [name for name in cls.__annotations__ if callable(getattr(Policy, name, None))]
        if taken:
            raise TypeError(
                f"{cls.__name__}: a field is called {taken[0]!r}, as a function of Policy is; name it otherwise"
            )
        cls.kind = struct.field(pytree_node=False, default=cls, repr=False, kw_only=True)
        super().__init_subclass__(**kwargs)

    def __post_init__(self):
        share = isinstance(self.recent, float) and 0 < self.recent < 1
        recent = "an integer of at least 0, half, or a share such as 0.3"
        self.require("scope", self.scope in SCOPES, f"one of {', '.join(SCOPES)}")
        self.require("sinks", is_size(self.sinks), "an integer of at least 0")
        self.require("recent", self.recent is None or share or is_size(self.recent), recent)
        self.require("every", is_size(self.every, 1), "an integer of at least 1")
        self.require("prompt", isinstance(self.prompt, bool), "True or False")
        if self.adaptive is not None:
            self.require("adaptive", _is_number(self.adaptive) and 0 <= self.adaptive <= 1, "a share from 0 to 1")
            self.require("scope", self.scope == "head", f"'head', since adaptive is {self.adaptive}")
        if self.pyramid is not None:
            self.require("pyramid", _is_number(self.pyramid) and self.pyramid >= 1, "a number of at least 1")

    def require(self, name: str, holds: bool, must: str) -> None:
        """Refuses the value of an option, saying what it must be, unless it holds."""
        if not holds:
            raise ValueError(f"{type(self).__name__}: {name} is {getattr(self, name)!r}; it must be {must}")

    @property
    def protects(self) -> bool:
        """Whether any token is protected from being forgotten."""
        return self.sinks > 0 or self.recent != 0 or self.prompt

    @property
    def observes(self) -> bool:
        """Whether it keeps statistics of what it is shown."""
        return self.defines("observe") or self.has_row_stats

    @property
    def has_row_stats(self) -> bool:
        """Whether it keeps statistics of whole rows."""
        return self.defines("init_rows")

    @property
    def biases(self) -> bool:
        """Whether it weakens or strengthens attention to slots."""
        return self.defines("bias")

    @property
    def revises(self) -> bool:
        """Whether it changes statistics when a row is cut."""
        return self.defines("revise")

    @property
    def inits_tokens(self) -> bool:
        """Whether a token comes with statistics of its own."""
        return self.defines("init_token")

    @property
    def one_by_one(self) -> bool:
        """Whether one slot goes at a time, of every row for itself, and nothing happens to statistics then."""
        return self.every == 1 and self.adaptive is None and not self.revises

    def defines(self, name: str) -> bool:
        """Whether it does something of its own there."""
        return getattr(type(self), name) is not getattr(Policy, name)

    def protected(self, layer: LayerState, t: Int[Array, ""]) -> Bool[Array, "#K S"]:
        """Which slots the engine keeps as long as there are others, after `t` tokens were seen."""
        first = self.sinks if layer.pinned is None else jnp.maximum(layer.pinned, self.sinks)
        return (layer.positions < first) | (layer.positions >= t - self.recent_of(layer.row_budgets))

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of what it reads as data; what is in them belongs to it as its code does."""
        return ()

    def recent_of(self, budget: Any) -> Any:
        """How many of the newest tokens are protected at a budget, a number or an array."""
        if self.recent is None:
            return budget >> 1  # half, for which Mosaic need not ask the device how to divide
        if isinstance(self.recent, int):
            return self.recent
        return share_of(budget, self.recent)

    def init(self, rows: int, slots: int) -> Stats:
        """The statistics of free slots; a newly written slot gets them again. Leaves [rows, slots, ...]."""
        del rows, slots
        return None

    def init_token(self, arrival: Arrival) -> Stats:
        """The statistics that a token comes with instead of those of `init`. Leaves [#K, ...], in a chunk batched."""
        del arrival
        return None

    def observe(self, stats: Stats, view: View) -> Stats:
        """Statistics after the newest token's attention; called once per token, nowhere else."""
        del view
        return stats

    def score(self, layer: LayerState, t: Int[Array, ""]) -> Score:
        """What each slot is worth after `t` tokens were seen; the lowest is forgotten, NaN before all."""
        raise NotImplementedError(f"{type(self).__name__} must define score(layer, t)")

    def init_rows(self, info: LayerInfo) -> RowStats:
        """Statistics of whole rows, `layer.row_stats`, before the first token: leaves [info.rows, ...]."""
        del info
        return None

    def observe_rows(self, rows: RowStats, view: View) -> RowStats:
        """Statistics of whole rows after the newest token's attention; called once per token, nowhere else."""
        del view
        return rows

    def revise(self, layer: LayerState, t: Int[Array, ""]) -> Stats:
        """Statistics of slots when a row is about to be cut, before `score` is asked; called at no other time."""
        del t
        return layer.stats

    def bias(self, layer: LayerState, t: Int[Array, ""]) -> Float[Array, "#K S"]:
        """What is added to the attention logits of the newest token, when `t` tokens were seen, it included.

        It sees statistics from before the token. A policy that defines it is stepped through in `extend`, and, unlike
        through `score`, gradients of logits and losses reach what it is made of.
        """
        del t
        return jnp.zeros_like(layer.positions, jnp.float32)

    def __str__(self) -> str:
        """The text that `parse_policy` reads: a name and the options that differ from the defaults."""
        own = option_fields(type(self)).values()
        changed = {field.name: getattr(self, field.name) for field in own if _differs(self, field)}
        options = [f"{name}={spell_option(name, value)}" for name, value in changed.items()]
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
    """The fields that text can set, by name: all by which two policies differ, but for their class."""
    return {field.name: field for field in dataclasses.fields(policy) if field.compare and field.name != "kind"}


def _differs(policy: Policy, field: dataclasses.Field) -> bool:
    value = getattr(policy, field.name)
    same_type = type(value) is type(field.default)
    return not (same_type and bool(np.all(value == field.default)))


def spell_option(name: str, value: Any) -> str:
    """The value of an option as text has it."""
    if name == "recent" and value is None:
        return "half"
    if isinstance(value, Tracer):
        return "<traced>"
    return str(np.asarray(value).tolist()) if isinstance(value, jax.Array | np.ndarray) else str(value)


def share_of(budget: Any, share: float) -> Any:
    """So much of a budget, rounded down: a number of a number, an array of an array."""
    if isinstance(budget, Array):
        return jnp.floor(budget.astype(jnp.float32) * jnp.float32(share)).astype(jnp.int32)
    return int(np.floor(np.float32(budget) * np.float32(share)))


def is_size(value: Any, least: int = 0) -> bool:
    """Whether it is a whole number, and large enough."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
