"""Tokens per second of decoding and reading, as a share of what the device could do."""

import functools
import time
from typing import Any

import jax

import msrnn_jax as ms
from experiments.common.shapes import SHAPES
from experiments.device_check.device import Peak, kernels
from experiments.device_check.settings import Settings
from experiments.throughput.decode import keep_going
from experiments.throughput.memory import fitting, standing
from experiments.throughput.roofline import weights_per_token
from experiments.throughput.timing import Model, Report, Row, Series, lowered, take_turns
from msrnn_jax.devices.memory import free_bytes, largest_batch, state_bytes, working_bytes
from msrnn_jax.io.provenance import text_hash
from msrnn_jax.io.units import tree_bytes
from msrnn_jax.params import abstract_params

USABLE = 0.9  # of the memory that is free: programs work in some, and some is lost between arrays
DTYPE = "bfloat16"


class Speed:
    """A model of random weights, which are made on the device and when they are first needed."""

    def __init__(self, settings: Settings, peak: Peak, report: Report):
        self.settings, self.peak, self.report = settings, peak, report
        self.policy = ms.parse_policy(settings.policy)
        whole = SHAPES[settings.shape].replace(dtype=DTYPE)
        self.layers = whole.num_layers  # of the whole model
        fitting_layers = layers_that_fit(whole, self.policy, settings.budget, int(USABLE * free_bytes()))
        self.config = whole.replace(num_layers=settings.layers or fitting_layers)

    @functools.cached_property
    def model(self) -> Model:
        self.report(f"making the weights of {self.config.num_layers} layers")
        return Model(self.config, jax.block_until_ready(ms.init_params(self.config, jax.random.key(0))))

    def decode(self, batch: int) -> Row:
        """Steps of so many rows, or of as many as fit, from states that are full."""
        budget, steps, weights = self.settings.budget, self.settings.steps, tree_bytes(self.model.params)
        state = state_bytes(self.config, self.policy, budget)
        memory = int(USABLE * (free_bytes() + weights))
        most = largest_batch(memory, weights, state + working_bytes(self.config, self.policy, budget))
        row = {"budget": budget, "weight_bytes": weights, "largest_batch": min(batch, most)}
        program, batch, seconds = fitting(self.model, self.policy, row, memory, steps)
        if program is None:
            raise ValueError("not one row fits into the memory")
        make = jax.jit(standing, static_argnames=("budget", "batch"))
        states = make(self.config, self.policy, jax.random.key(0), budget=budget, batch=batch)
        call = keep_going(program, self.model, self.policy, states)
        del states  # which the calls overwrite
        found = self._timed(call, batch * steps, batch=batch, compile_seconds=seconds)
        read = 2 * weights_per_token(self.config) + batch * state  # bytes a step, each once
        rate = read * found["tokens_per_second"] / batch
        return {**found, "bytes_of_a_step": read, "bytes_per_second": rate, "share": _share(rate, self.peak.bandwidth)}

    def perplexity(self, setting: str) -> Row:
        """`nll` from an empty state, with or without kernels."""
        config, params = self.model
        tokens = jax.random.randint(jax.random.key(0), (self.settings.tokens + 1,), 0, config.vocab_size)
        state = ms.init_state(config, self.policy, self.settings.budget)
        given = (config, self.policy, params, state, tokens[:-1], tokens[1:])
        started = time.perf_counter()
        with kernels(setting):
            traced = lowered(ms.nll, *given)
            program = traced.compile()
        seconds = time.perf_counter() - started
        facts = {"compile_seconds": seconds, "program": text_hash(traced.as_text())}
        found = self._timed(lambda: jax.block_until_ready(program(*given)), self.settings.tokens, **facts)
        rate = 2 * weights_per_token(config) * found["tokens_per_second"]  # of products with weights alone
        return {**found, "flops_per_second": rate, "share": _share(rate, self.peak.flops)}

    def _timed(self, call: Any, tokens: int, **facts: Any) -> Row:
        facts |= {"layers": self.config.num_layers, "layers_of_all": self.layers}
        (row,) = take_turns([Series("calls", call, tokens, facts)], self.settings.turns, self.report)
        return row


def layers_that_fit(config: ms.Config, policy: ms.Policy, budget: int, memory: int) -> int:
    """Layers of the model that fit with one state, at least one and at most all."""

    def needed(layers: int) -> int:
        part = config.replace(num_layers=layers)
        return tree_bytes(abstract_params(part)) + state_bytes(part, policy, budget)

    more = (memory - needed(1)) // (needed(2) - needed(1))
    return min(config.num_layers, 1 + max(0, more))


def _share(rate: float, peak: float | None) -> float | None:
    return None if peak is None else rate / peak
