"""Whether the same tokens are held and the same logits come out, whichever way they are computed."""

from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

import msrnn_jax as ms
from experiments.common.shapes import SHAPES
from experiments.device_check.device import kernels
from experiments.throughput.timing import Row, lowered
from msrnn_jax.policies.base import SCOPES

TOKENS, BUDGET, CHUNK = 96, 24, 48
TOLERANCE = 1e-4  # of logits about 1 in size; products in less than float32 differ by more
# What is compared: a kernel with the scan that it replaces, many tokens at once with one by one, the device with a CPU.
CHECKS = {"kernel and scan": ("kernel", "scan"), "extend and step": ("scan", "step"), "device and CPU": ("scan", "cpu")}

CHECKED = ("tova:scope={}", "h2o:scope={}", "window:scope={}", "random:scope={}", "full:scope={}") + (
    "rkv:scope={},recent=4,every=8",
    "triattention:scope={},every=8",
)


class Outcome(NamedTuple):
    """What a small model makes of a text."""

    logits: np.ndarray  # [T, V]
    held: list[np.ndarray]  # of every layer [#K, S], the positions held at the end, ascending
    program: tuple[Any, str]  # that computed it: device and text


def policies() -> list[ms.Policy]:
    """The paper's, and two that cut many tokens at once, for whole layers and, where they forget, for every head."""
    every = [ms.parse_policy(text.format(scope)) for text in CHECKED for scope in SCOPES]
    return [policy for policy in every if policy.forgets or policy.scope == SCOPES[0]]


def read(
    config: ms.Config, policy: ms.Policy, params: ms.Params, tokens: Int[Array, " T"], *, stepwise: bool
) -> tuple[Float[Array, "T V"], list[Array]]:
    """Logits of a text that is read from an empty state, and the positions that every layer then holds."""
    state = ms.init_state(config, policy, BUDGET if policy.forgets else len(tokens))
    if stepwise:
        state, logits = lax.scan(partial(ms.step, config, policy, params), state, tokens)
    else:
        state, logits = ms.extend(config, policy, params, state, tokens, chunk=CHUNK)
    return logits, [layer.positions for layer in state.layers]


class Exactness:
    """A small random model in float32, with products as exact as they can be."""

    def __init__(self, seed: int):
        self.config = SHAPES["tiny"]
        self.given = (
            ms.init_params(self.config, jax.random.key(seed)),
            jax.random.randint(jax.random.key(seed + 1), (TOKENS,), 0, self.config.vocab_size),
        )
        self._outcomes: dict[tuple[str, str], Outcome] = {}
        self._results: dict[tuple[Any, str], Any] = {}

    def check(self, name: str, policy: ms.Policy) -> Row:
        """Compares two ways."""
        first, second = (self.outcome(policy, way) for way in CHECKS[name])
        difference = float(np.abs(first.logits - second.logits).max())
        pairs = zip(first.held, second.held, strict=True)
        apart = sum(int((one != other).any(axis=1).sum()) for one, other in pairs)
        return {
            "passed": difference <= TOLERANCE and not apart,
            "largest_difference": difference,
            "rows_held_differently": apart,
            "one_program": first.program == second.program,
        }

    def outcome(self, policy: ms.Policy, way: str) -> Outcome:
        """What comes of one way, computed once."""
        key = str(policy), way
        if key not in self._outcomes:
            self._outcomes[key] = self._read(policy, way)
        return self._outcomes[key]

    def _read(self, policy: ms.Policy, way: str) -> Outcome:
        device = jax.devices("cpu")[0] if way == "cpu" else jax.local_devices()[0]
        given = (self.config, policy, *jax.device_put(self.given, device))
        with kernels("on" if way == "kernel" else "off"), jax.default_matmul_precision("highest"):
            program = lowered(read, *given, stepwise=way == "step")
            key = device, program.as_text()
            if key not in self._results:
                self._results[key] = jax.device_get(program.compile()(*given))
        logits, positions = self._results[key]
        return Outcome(logits, [np.sort(rows, axis=1) for rows in positions], key)
