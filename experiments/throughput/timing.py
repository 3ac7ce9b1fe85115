"""Calls timed in turns, and ratios taken within a turn."""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import msrnn_jax as ms
from experiments.common.shapes import SHAPES
from experiments.throughput.settings import Settings
from msrnn_jax.checkpoint.identity import fingerprint
from msrnn_jax.io.provenance import text_hash
from msrnn_jax.params import abstract_params
from msrnn_jax.text.documents import read_documents

PAUSE = 0.02  # seconds before every call, in which the threads of the other library go to sleep
Report = Callable[[str], None]
Row = dict[str, Any]  # one series as JSON
PEERS = ("torch", "transformers")
SEED = 0  # of random weights and tokens


@dataclasses.dataclass(frozen=True)
class Series:
    """A call that is timed."""

    name: str
    call: Callable[[], Any]  # returns once the work is done
    tokens: int  # that one call reads or writes, over all rows of its batch
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)  # what its row says besides
    prepare: Callable[[], Any] = lambda: None  # before every call, outside its time


def take_turns(series: Sequence[Series], turns: int, report: Report, *, warm: bool = True) -> list[Row]:
    """Calls every series once a turn and returns a row for each, with the seconds of every call.

    The order is turned round from turn to turn, so that none always follows the same other.

    Args:
      warm: throw a first turn away. Without, the first call pays for cold caches as well, which the median
        forgives where a call takes most of a second.
    """
    seconds: dict[str, list[float]] = {one.name: [] for one in series}
    assert len(seconds) == len(series), "two series of one name"
    for turn in range(-1 if warm else 0, turns):
        report(f"turn {turn + 1} of {turns}" if turn >= 0 else "warming up")
        for one in series if turn % 2 else reversed(series):
            one.prepare()
            time.sleep(PAUSE)
            started = time.perf_counter()
            one.call()
            if turn >= 0:
                seconds[one.name].append(time.perf_counter() - started)
    return [
        {
            "series": one.name,
            **one.facts,
            "tokens": one.tokens,
            "seconds": seconds[one.name],
            "tokens_per_second": one.tokens / statistics.median(seconds[one.name]),
        }
        for one in series
    ]


def ratio(rows: Sequence[Row], of: str, over: str, kind: str = "speed") -> Row:
    """How `of` compares with `over`: tokens per second ("speed") or seconds per token ("time").

    Every turn has its ratio, and the median of these is quoted.
    """
    assert kind in ("speed", "time")
    first, second = row_of(rows, of), row_of(rows, over)
    costs = [
        (a / first["tokens"]) / (b / second["tokens"]) for a, b in zip(first["seconds"], second["seconds"], strict=True)
    ]
    each = [1 / cost for cost in costs] if kind == "speed" else costs
    return {"of": of, "over": over, "kind": kind, "each": each, "median": statistics.median(each)}


def row_of(rows: Sequence[Row], name: str) -> Row:
    """The row of the series of that name."""
    (row,) = (row for row in rows if row["series"] == name)
    return row


def lowered(function: Callable, *arguments: Any, donate: Sequence[int] = (), **static: Any) -> Any:
    """The function traced for these arguments, or for their shapes.

    Args:
      donate: numbers of the arguments that the program may overwrite.
      static: keyword arguments, which become part of the program.
    """
    # What is not read is kept as an argument all the same, so that XLA counts the memory of a whole state.
    jitted = jax.jit(functools.partial(function, **static), donate_argnums=tuple(donate), keep_unused=True)
    return jitted.lower(*arguments)


def compiled(function: Callable, *arguments: Any, donate: Sequence[int] = (), **static: Any) -> tuple[Any, float]:
    """`lowered` and compiled, and the seconds that took."""
    started = time.perf_counter()
    program = lowered(function, *arguments, donate=donate, **static).compile()
    return program, time.perf_counter() - started


def program_bytes(program: Any) -> dict[str, int]:
    """The memory of a compiled program as XLA counts it, in bytes; what is aliased is counted as an argument."""
    analysis = program.memory_analysis()
    parts = {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes,
        "aliased": analysis.alias_size_in_bytes,
        "temporary": analysis.temp_size_in_bytes,
    }
    return {**parts, "peak": parts["arguments"] + parts["outputs"] - parts["aliased"] + parts["temporary"]}


class Model(NamedTuple):
    """What every function of the library takes first, but for the policy."""

    config: ms.Config
    params: ms.Params


class Bench:
    """Loads each thing when it is first asked for, and once."""

    def __init__(self, settings: Settings, report: Report):
        self.settings = settings
        self.report = report
        self.policy = ms.parse_policy(settings.policy)
        self.origin: dict[str, Any] = {}  # what was read, for the result
        self.no_peers = _why_no_peers(settings)
        self._models: dict[str, Model] = {}
        self._peers: dict[str, Any] = {}
        self._text: np.ndarray | None = None

    def model(self, dtype: str) -> Model:
        """Config and weights in a dtype."""
        if dtype not in self._models:
            self.report(f"loading {dtype} weights")
            if self.settings.checkpoint is None:
                config = self.abstract(dtype).config
                self._models[dtype] = Model(config, ms.init_params(config, jax.random.key(SEED)))
            else:
                self._models[dtype] = Model(*ms.load(self.settings.checkpoint, dtype=dtype))
                self.origin.setdefault("model_sha256", {})[dtype] = fingerprint(*self._models[dtype])
        return self._models[dtype]

    def abstract(self, dtype: str) -> Model:
        """Config and the shapes of the weights, which are not drawn for that."""
        shape = SHAPES.get(self.settings.shape or "")
        config = self.model(dtype).config if shape is None else shape.replace(dtype=dtype)
        return Model(config, abstract_params(config))

    def peer(self, dtype: str) -> Any:
        """The same weights in transformers, or None where there is no such thing."""
        if self.no_peers:
            return None
        if dtype not in self._peers:
            from experiments.throughput.transformers_peer import Peer

            config, params = self.model(dtype)
            self.report(f"copying {dtype} weights to torch")
            self._peers[dtype] = Peer(config, params, threads())
        return self._peers[dtype]

    def describe_peers(self) -> dict[str, Any]:
        """Versions of what was timed beside us, or why nothing was."""
        names = () if self.no_peers else PEERS
        return {"skipped": self.no_peers, **{name: importlib.metadata.version(name) for name in names}}

    def tokens(self, count: int) -> jax.Array:
        """The first tokens of the text.

        Raises:
          ValueError: where it is shorter.
        """
        if self._text is None:
            self._text = self._read_text()
        if self._text.size < count:
            raise ValueError(f"the text has {self._text.size} tokens; this run reads {count}")
        return jnp.asarray(self._text[:count])

    def _read_text(self) -> np.ndarray:
        if self.settings.checkpoint is None:
            self.origin["random_seed"] = SEED
            random = np.random.default_rng(SEED)
            return random.integers(0, SHAPES[self.settings.shape or ""].vocab_size, 2**17).astype(np.int32)
        text = "\n\n".join(document.text for document in read_documents(self.settings.texts))
        self.origin["text_sha256"] = text_hash(text)
        return np.asarray(ms.load_tokenizer(self.settings.checkpoint).encode(text), np.int32)

    def filled(self, dtype: str, policy: ms.Policy, budget: int, count: int) -> ms.MultiState:
        """A state that has read the first tokens of the text."""
        config, params = self.model(dtype)
        empty = ms.init_state(config, policy, budget)
        return ms.prefill(config, policy, params, empty, self.tokens(count))[0]


def threads() -> int:
    """The cores this process may use: XLA takes them all, and torch is given as many."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def move(state: ms.MultiState, t: int) -> ms.MultiState:
    """The same state at another time: its clock and all held positions shifted alike."""
    by = t - state.t
    layers = [
        layer.replace(positions=jnp.where(layer.positions == ms.EMPTY, ms.EMPTY, layer.positions + by))
        for layer in state.layers
    ]
    return state.replace(layers=tuple(layers), t=jnp.asarray(t, jnp.int32))


def _why_no_peers(settings: Settings) -> str | None:
    """Why transformers cannot be timed beside us, or None where it can."""
    if not settings.peers:
        return "not asked for (--no-peers)"
    if jax.default_backend() != "cpu":
        return f"torch runs on the CPU here, and JAX on {jax.default_backend()}"
    absent = [name for name in PEERS if importlib.util.find_spec(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    try:
        importlib.import_module("torch")
    except ImportError as error:  # installed, but without a library that it needs
        return f"torch does not import: {error}"
    return None
