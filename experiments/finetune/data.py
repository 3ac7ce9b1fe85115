"""What a run of training works with, and what another that goes on with it must have too."""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

import msrnn_jax as ms
from experiments.common.books import Book, read_books
from experiments.common.policies import named, policies_of
from experiments.finetune.gating import Gating
from experiments.finetune.settings import Settings, check
from experiments.finetune.training import Descent, Method, Places
from msrnn_jax.checkpoint.identity import config_hash, fingerprint
from msrnn_jax.io.environment import keep_compilations
from msrnn_jax.io.provenance import environment, tokens_hash
from msrnn_jax.params import is_low_rank
from msrnn_jax.policies import Learned, parse_policy
from msrnn_jax.policies.source import source_hash

# What may differ in a run that goes on; hashes stand for checkpoint, data and start.
FREE = ("checkpoint", "data", "keep_every", "merge", "start")


class Reading(NamedTuple):
    """What one step reads."""

    tokens: np.ndarray  # [B, S + 1] int32: every token predicts the one after it
    begins: bool  # whether it is the beginning of a stretch, before which there is an empty state


class Order:
    """Stretches of books in an order drawn from a seed, a few side by side, segment by segment.

    A book is cut into stretches of `length` tokens and the one after, whose last token is the first of the next
    stretch; the last stretch of a book ends with it and may overlap the one before. In every epoch each stretch is read
    once, in an order of its own. Row b of a step goes through one stretch, in `length / segment` steps.

    Attributes:
      stretches: of all books.
    """

    def __init__(self, books: Sequence[Book], length: int, segment: int, batch: int, seed: int):
        if length % segment:
            raise ValueError(f"length is {length}; it must be a multiple of the segment, {segment}")
        self.stretches = [
            book.tokens[start : start + length + 1] for book in books for start in _starts(len(book.tokens) - 1, length)
        ]
        self._segment, self._batch, self._seed = segment, batch, seed
        self._segments = length // segment

    def at(self, step: int) -> Reading:
        """What the step reads; the first step is 0."""
        group, part = divmod(step, self._segments)
        rows = [self._stretch(group * self._batch + row) for row in range(self._batch)]
        begin = part * self._segment
        return Reading(np.stack([row[begin : begin + self._segment + 1] for row in rows]), part == 0)

    def _stretch(self, number: int) -> np.ndarray:
        epoch, place = divmod(number, len(self.stretches))
        return self.stretches[_drawn(self._seed, epoch, len(self.stretches))[place]]


@functools.lru_cache(maxsize=4)
def _drawn(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def _starts(count: int, length: int) -> list[int]:
    """Of the stretches of a book with so many tokens that have a next one."""
    starts = list(range(0, count - length + 1, length))
    return starts if not starts or starts[-1] + length == count else [*starts, count - length]


class Plan(NamedTuple):
    """What a run works with."""

    settings: Settings
    method: Method
    order: Order
    params: ms.Params  # as they were
    places: Places
    about: dict[str, Any]  # what a run that goes on must have too


def make_plan(settings: Settings, console: Console) -> Plan:
    """Reads the model and the books.

    Raises:
      ValueError: for settings, a model or data that cannot be used.
    """
    check(settings)
    places = Places(settings.batch)
    keep_compilations()
    stored, params = ms.load(settings.checkpoint, dtype="float32")
    has_adapters = any(map(is_low_rank, jax.tree.leaves(params, is_leaf=is_low_rank)))
    if settings.merge and not (settings.lora or has_adapters):
        raise ValueError("merge is given, but there are no adapters; lora must be a rank")
    if settings.lora and has_adapters:
        raise ValueError(
            f"checkpoint {settings.checkpoint!r} has adapters already; lora must be 0, which trains these too"
        )
    if settings.length > stored.max_length:
        raise ValueError(f"length is {settings.length}; the model was made for {stored.max_length} tokens at most")
    policy = parse_policy(settings.policy)
    if policy.forgets:
        policies_of(stored, [settings.policy], [settings.budget], settings.length)
    tokenizer = ms.load_tokenizer(settings.checkpoint)
    books = read_books(tokenizer, settings.data, settings.length + 1, console)
    order = Order(books, settings.length, settings.segment, settings.batch, settings.seed)
    method = Method(
        config=stored.replace(dtype=settings.compute),
        policy=policy,
        budget=settings.budget,
        length=settings.length,
        distill=settings.distill,
        chunk=min(settings.chunk, settings.segment),
        descent=Descent(
            learning_rate=settings.learning_rate,
            updates=settings.steps // settings.accumulate,
            warmup=settings.warmup,
            weight_decay=settings.weight_decay,
            clip=settings.clip,
            accumulate=settings.accumulate,
        ),
        gating=Gating(settings.gate, settings.hinge, settings.temperature) if settings.gate else None,
    )
    about = _about(settings, policy, books, places)
    about |= {"model_sha256": fingerprint(stored, params), "config_sha256": config_hash(stored)}
    return Plan(settings, method, order, params, places, about)


def _about(settings: Settings, policy: ms.Policy, books: list[Book], places: Places) -> dict[str, Any]:
    fixed = {name: value for name, value in dataclasses.asdict(settings).items() if name not in FREE}
    if not policy.forgets:
        fixed["budget"] = None
    return {
        "settings": json.loads(json.dumps({**fixed, **named(policy)})),
        # In their order, which is that of the stretches.
        "data_sha256": [[book.name, tokens_hash(book.tokens)] for book in books],
        "environment": {**environment(), "optax": importlib.metadata.version("optax")},
        "start_sha256": source_hash(Learned(gate=settings.start)),
        "devices": places.devices,
    }


def check_same(folder: pathlib.Path, kept: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuses to go on with what was begun in another way, naming the first difference."""
    before = _flat(kept)
    for name, wanted in _flat(ours).items():
        if before.get(name) != wanted:
            raise ValueError(
                f"{str(folder)!r} was begun with {name} {before.get(name)!r}, not {wanted!r}; "
                "go on with that, or choose another folder"
            )


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Values by the last of the names that lead to them, which are all different."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _flat(value) if isinstance(value, dict) else {name: value}
    return found
