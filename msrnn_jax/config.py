"""The static description of a LLaMA: sizes, rotary settings, dtype."""

import dataclasses
import difflib
import json
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

DTYPES = ("bfloat16", "float16", "float32", "float64")
MAX_LAYERS = 10_000  # a program has code for every one, so a damaged number must not get far
MAX_WINDOW = 2**31 - 1  # positions are int32
ROPE_KINDS = ("default", "linear", "llama3", "yarn")


def at_least_float32(dtype: Any) -> jnp.dtype:
    """float32, or the dtype itself where it is wider: what norms, logits and softmax are computed in."""
    return max(jnp.dtype(dtype), jnp.dtype(jnp.float32), key=lambda kind: kind.itemsize)


class _Record:
    """JSON-ready mapping there and back, shared by the frozen classes below."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        fields = dataclasses.asdict(self)  # pyright: ignore[reportArgumentType]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def _check_keys(cls: type, fields: Mapping[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(cls)]
    required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
    problems = []
    for name in fields:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            problems.append(f"unknown {name!r}" + (f" (did you mean {close[0]!r}?)" if close else ""))
    problems += [f"missing {name!r}" for name in required if name not in fields]
    if problems:
        raise ValueError(f"{cls.__name__}: {', '.join(problems)}")


def _require(cls: type, name: str, value: Any, rule: str, good: bool) -> None:
    if not good:
        raise ValueError(f"{cls.__name__}.{name} is {value!r}; it must be {rule}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Rope(_Record):
    """Rotary position settings.

    `linear` divides every frequency by `factor` (Chen et al., 2023, arXiv:2306.15595); `llama3` divides
    the low ones only, blending between wavelengths `original_length / high_freq_factor` and
    `original_length / low_freq_factor` (Llama 3.1). `yarn` (Peng et al., 2023, arXiv:2309.00071) divides the
    frequencies of pairs that turn less than `beta_slow` times within `original_length`, leaves those that turn more
    than `beta_fast` times, blends linearly over the pairs between them (whole pairs, with `truncate`), and
    multiplies cosines and sines by `attention_factor`, by default 0.1 ln(factor) + 1.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self):
        _require(Rope, "kind", self.kind, f"one of {', '.join(ROPE_KINDS)}", self.kind in ROPE_KINDS)
        for name in ("theta", "factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"):
            value = getattr(self, name)
            _require(Rope, name, value, "a positive number", _is_positive(value))
        good = self.attention_factor is None or _is_positive(self.attention_factor)
        _require(Rope, "attention_factor", self.attention_factor, "a positive number or None", good)
        _require(Rope, "truncate", self.truncate, "true or false", isinstance(self.truncate, bool))
        _require(Rope, "original_length", self.original_length, "a positive integer", _is_count(self.original_length))
        if self.kind == "llama3":
            rule = f"more than low_freq_factor ({self.low_freq_factor})"
            _require(
                Rope, "high_freq_factor", self.high_freq_factor, rule, self.high_freq_factor > self.low_freq_factor
            )
        if self.kind == "yarn":
            _require(Rope, "theta", self.theta, "more than 1", self.theta > 1)
            rule = f"at least beta_slow ({self.beta_slow})"
            _require(Rope, "beta_fast", self.beta_fast, rule, self.beta_fast >= self.beta_slow)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Config(_Record):
    """Sizes and settings of one LLaMA; frozen, compared by value, static under `jit`.

    Attributes:
      vocab_size: V, number of tokens.
      model_dim: D, width of the residual stream.
      num_layers: L, decoder layers.
      num_heads: N, query heads.
      num_kv_heads: K, key/value heads; divides N.
      head_dim: H, even.
      mlp_dim: F, width of the MLP.
      max_length: tokens the model was trained to see at once; a fact for users, not a limit.
      norm_eps: added to the mean square in RMSNorm.
      rope: rotary settings.
      tied_embeddings: the unembedding is the embedding.
      attention_bias: q, k and v projections have biases.
      output_bias: the output projection of attention has one.
      mlp_bias: gate, up and down projections have biases.
      qk_norm: every head's query and key are normalised (RMSNorm over H) before they are rotated.
      unrotated_layers: layers without rotary positions, whatever the position mode; ascending.
      sliding_window: W, tokens that a query of a sliding layer sees, itself included, at least 2; None: all.
      sliding_layers: the layers that this applies to, ascending; None: all.
      dtype: of weights and, unless `init_state` says otherwise, of keys and values.
    """

    vocab_size: int
    model_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    max_length: int = 2048
    norm_eps: float = 1e-5
    rope: Rope = Rope()
    tied_embeddings: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    unrotated_layers: tuple[int, ...] = ()
    sliding_window: int | None = None
    sliding_layers: tuple[int, ...] | None = None
    dtype: str = "float32"

    def __post_init__(self):
        for name in (
            "vocab_size",
            "model_dim",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "mlp_dim",
            "max_length",
        ):
            _require(Config, name, getattr(self, name), "a positive integer", _is_count(getattr(self, name)))
        _require(Config, "num_layers", self.num_layers, f"at most {MAX_LAYERS}", self.num_layers <= MAX_LAYERS)
        rule = f"a divisor of num_heads ({self.num_heads})"
        _require(Config, "num_kv_heads", self.num_kv_heads, rule, self.num_heads % self.num_kv_heads == 0)
        _require(Config, "head_dim", self.head_dim, "even", self.head_dim % 2 == 0)
        _require(Config, "norm_eps", self.norm_eps, "a positive number", _is_positive(self.norm_eps))
        _require(Config, "rope", self.rope, "a Rope", isinstance(self.rope, Rope))
        for name in ("tied_embeddings", "attention_bias", "output_bias", "mlp_bias", "qk_norm"):
            _require(Config, name, getattr(self, name), "true or false", isinstance(getattr(self, name), bool))
        _require(Config, "dtype", self.dtype, f"one of {', '.join(DTYPES)}", self.dtype in DTYPES)
        self._check_layers("unrotated_layers", self.unrotated_layers)
        window = self.sliding_window
        good = window is None or (_is_count(window) and 2 <= window <= MAX_WINDOW)
        _require(
            Config, "sliding_window", window, f"a whole number of at least 2 and at most {MAX_WINDOW}, or None", good
        )
        if self.sliding_layers is not None:
            self._check_layers("sliding_layers", self.sliding_layers)
            good = window is not None and len(self.sliding_layers) > 0
            _require(Config, "sliding_layers", self.sliding_layers, "None, or layers with a sliding_window", good)

    def _check_layers(self, name: str, layers: Any) -> None:
        good = isinstance(layers, tuple) and all(type(layer) is int for layer in layers)
        good = good and list(layers) == sorted(set(layers)) and set(layers) <= set(range(self.num_layers))
        rule = f"a tuple of layers from 0 to {self.num_layers - 1}, ascending and distinct"
        _require(Config, name, layers, rule, good)

    @property
    def group_size(self) -> int:
        """G, query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads

    def rotates(self, layer: int) -> bool:
        """Whether queries and keys of a layer are rotated."""
        return layer not in self.unrotated_layers

    def window_of(self, layer: int) -> int | None:
        """How many tokens a query of a layer sees at most, itself included; None where it sees all."""
        slides = self.sliding_layers is None or layer in self.sliding_layers
        return self.sliding_window if slides else None

    def replace(self, **changes: Any) -> "Config":
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """The settings as JSON text, readable by `from_json`."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Config":
        """Builds a config from plain values; unknown and missing names raise `ValueError`."""
        _check_keys(cls, fields)
        rope = fields.get("rope", {})
        if isinstance(rope, Mapping):
            _check_keys(Rope, rope)
            rope = Rope(**rope)
        layers = {
            name: tuple(fields[name])
            for name in ("unrotated_layers", "sliding_layers")
            if isinstance(fields.get(name), list)  # JSON has no tuples
        }
        return cls(**{**fields, **layers, "rope": rope})

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """Reads what `to_json` wrote."""
        fields = json.loads(text)
        if not isinstance(fields, Mapping):
            raise ValueError(f"Config: the JSON is a {type(fields).__name__}; it must be an object")
        return cls.from_dict(fields)
