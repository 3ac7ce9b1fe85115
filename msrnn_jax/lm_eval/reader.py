"""Batches of contexts, read into states under one policy, to be continued or to have continuations judged."""

import contextlib
import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from msrnn_jax.config import Config
from msrnn_jax.devices.memory import automatic_batch
from msrnn_jax.devices.sharding import DATA, put_rows, shardings
from msrnn_jax.evaluation.continuations import score_continuations
from msrnn_jax.evaluation.sweep import cut_batches, fill_batch
from msrnn_jax.generation.decoding import DecodingRules, DecodingState
from msrnn_jax.generation.request import check_prompt_policy, make_request, read_prompts, start_from
from msrnn_jax.generation.sampling import Greedy, Sampler
from msrnn_jax.generation.streaming import TextStream
from msrnn_jax.params import Params
from msrnn_jax.policies import Policy
from msrnn_jax.policies.budgets import least_budget
from msrnn_jax.recurrence.sliding_window import room_for
from msrnn_jax.recurrence.slots import share_out, slots_of
from msrnn_jax.state import MultiState
from msrnn_jax.text.tokenizer import Tokenizer
from msrnn_jax.text.tokens import pad

T = TypeVar("T")

ROOM = 256  # what is held in full, and shares of prompts, come to slots that are a multiple of this


class Pair(NamedTuple):
    """A continuation and what goes before it, in tokens; both hold at least one."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Job(NamedTuple):
    """A context that is read once, and what for."""

    context: tuple[int, ...]
    budget: int
    room: int  # tokens that will follow it, at most
    places: tuple[int, ...]  # which of the requests it belongs to

    @property
    def size(self) -> int:
        return len(self.context) + self.room

    def order(self) -> Any:
        """Sorts by size, the largest first, so that a lack of memory shows at once."""
        return -self.size, self.context


@dataclasses.dataclass(frozen=True)
class Reader:
    """A model and how it reads.

    Attributes:
      policy: what forgets.
      prompt_policy: what forgets while contexts are read, as in `generate`; None: the same.
      budget: tokens that a layer remembers; as a float a share of the tokens of every context.
      mode: how contexts are read, "stepwise" or "oneshot".
      positions: as in `init_state`.
      batch: contexts, or continuations, at once; None: as many as fit.
      most: where `batch` is None, no more than this.
      mesh: devices that share rows and heads.
    """

    config: Config
    params: Params
    tokenizer: Tokenizer
    policy: Policy
    prompt_policy: Policy | None
    budget: int | float
    mode: str
    positions: str
    batch: int | None
    most: int | None
    mesh: Mesh | None

    def judge(self, pairs: Sequence[Pair], *, whole: bool = False) -> Iterator[tuple[int, float, bool]]:
        """For every pair its place, log p(continuation | context) in nats, and whether greedy decoding would write it.

        Each context is read once, whatever the number of its continuations, and its state forked. Pairs come in an
        order of their own, the longest first.

        Args:
          whole: shares are of context and continuation together.
        """
        members: dict[tuple[tuple[int, ...], int | None], list[int]] = defaultdict(list)
        for place, pair in enumerate(pairs):
            size = len(pair.context) + len(pair.continuation)
            members[pair.context, self._budget(size, size) if whole else None].append(place)
        jobs = []
        for (context, budget), places in members.items():
            room = max(len(pairs[place].continuation) for place in places)
            own = self._budget(len(context), len(context) + room) if budget is None else budget
            jobs.append(Job(context, own, room, tuple(places)))
        jobs.sort(key=Job.order)
        size = self._rows(jobs, len(pairs))
        for some in self._batches(jobs, size):
            wanted = [(row, place) for row, job in enumerate(dict.fromkeys(some)) for place in job.places]
            wanted.sort(key=lambda one: -len(pairs[one[1]].continuation))
            with self._devices():
                draft = self._read(some)[1]
                for rows in self._batches(wanted, size):
                    yield from self._judge(draft, rows, pairs)
                del draft  # before the next ones are read

    def _judge(
        self, draft: DecodingState, wanted: Sequence[tuple[int, int]], pairs: Sequence[Pair]
    ) -> Iterator[tuple[int, float, bool]]:
        states, logits = _take((draft.states, draft.logits), jnp.asarray([row for row, _ in wanted], jnp.int32))
        continuations = [pairs[place].continuation for _, place in wanted]
        nats, greedy = score_continuations(self.config, self.policy, self.params, states, logits, continuations)
        judged = {place: (-float(cost), bool(hit)) for (_, place), cost, hit in zip(wanted, nats, greedy, strict=True)}
        yield from ((place, *result) for place, result in judged.items())

    def write(
        self,
        contexts: Sequence[tuple[int, ...]],
        keys: Array,
        sampler: Sampler,
        stop_strings: Sequence[str],
        max_new_tokens: int,
    ) -> Iterator[tuple[int, str]]:
        """For every context its place, and the text that follows it.

        Args:
          keys: a PRNG key for each context.
        """
        jobs = [
            Job(context, self._budget(len(context), len(context) + max_new_tokens), max_new_tokens, (place,))
            for place, context in enumerate(contexts)
        ]
        jobs.sort(key=Job.order)
        for some in self._batches(jobs, self._rows(jobs, len(jobs))):
            places = [job.places[0] for job in some]
            with self._devices():
                rules, draft = self._read(some, sampler, keys[jnp.asarray(places, jnp.int32)])
                about = self.config, self.policy, self.params, self.tokenizer, [job.context for job in some]
                stream = TextStream(*about, draft, rules, sampler, stop_strings)
                for _ in stream:
                    pass
            yield from dict(zip(places, (row.text for row in stream.rows), strict=True)).items()

    def check(self) -> None:
        """Refuses a budget, policies or positions that do not go together, before any work."""
        budget = self._budget(ROOM, ROOM)
        self._slots(budget)
        if self.prompt_policy is not None:
            sharing = self.policy if self.prompt_policy.pyramid is None else self.prompt_policy
            budgets = share_out(sharing, self.config.num_layers, budget)
            check_prompt_policy(self.policy, self.prompt_policy, budgets)

    def _rows(self, jobs: Sequence[Job], number: int) -> int:
        """Rows at once, of at most so many."""
        if not jobs or self.batch is not None:
            return self.batch or 1
        most = -(-number // self._sharers)
        if self.most is not None:
            most = min(most, max(1, self.most // self._sharers))
        budget, longest = max(job.budget for job in jobs), max(job.size for job in jobs)
        own = slots_of(self.config, self.policy, budget)
        needed = np.maximum(self._slots(budget), own)
        if self.mode == "oneshot":
            needed = needed + longest
        # Twice, since what a context has left is kept beside what its continuations make of it.
        slots = (2 * np.broadcast_to(needed, self.config.num_layers)).tolist()
        fits = [
            automatic_batch(self.config, policy, slots, longest, most, positions=self.positions, fidelity=False)
            for policy in (self.policy, self._first)
        ]
        return self._sharers * min(fits)

    @property
    def _sharers(self) -> int:
        """Devices that share the rows of a batch."""
        return 1 if self.mesh is None else self.mesh.shape[DATA]

    def _batches(self, rows: Sequence[T], size: int) -> Iterator[list[T]]:
        """The rows, so many at a time; the last one is repeated so that all batches run through one program."""
        size = min(size, -(-len(rows) // self._sharers) * self._sharers)
        for some in cut_batches(rows, size) if rows else ():
            yield fill_batch(some, size)

    def _read(
        self, jobs: Sequence[Job], sampler: Sampler | None = None, keys: Array | None = None
    ) -> tuple[DecodingRules, DecodingState]:
        """The states after contexts, and how they are continued; by default nothing is drawn."""
        sampler = Greedy() if sampler is None else sampler
        padded, lengths = pad([job.context for job in jobs])
        budgets, room = [job.budget for job in jobs], max(job.room for job in jobs)
        if not self.policy.forgets:  # `make_request` sees one length and one room for all rows
            budgets = [self._budget(0, int(lengths.max()) + room)] * len(jobs)
        slots = self._slots(max(budgets))
        fixed = {"slots": slots, "positions": self.positions}
        start = _start_rows(self.config, self.policy, self.prompt_policy, jnp.asarray(budgets, jnp.int32), **fixed)
        if self.mesh is not None:
            places = shardings(self.config, self._first, self.mesh, positions=self.positions)
            start, (padded, lengths) = jax.device_put(start, places.state), put_rows((padded, lengths), places.rows)
        asked = padded, lengths, room, sampler, keys, self.tokenizer.stop, self.mode, self.prompt_policy
        request = make_request(self.config, self.policy, self.params, start, *asked)
        reading = self.config, self.policy, self.params, request, self.mode, self.prompt_policy
        return request.rules, read_prompts(*reading)

    @property
    def _first(self) -> Policy:
        """The policy that reads contexts."""
        return self.policy if self.prompt_policy is None else self.prompt_policy

    @property
    def _is_share(self) -> bool:
        return isinstance(self.budget, float) and self.policy.forgets

    def _budget(self, count: int, held: int) -> int:
        """The budget of a request.

        Args:
          count: what shares are of.
          held: what a policy that forgets nothing must hold; rounded, so that few programs are compiled.
        """
        if not self.policy.forgets:
            return room_for(self.config, self.positions, _rounded(held))
        if not self._is_share:
            return int(self.budget)
        least = least_budget(self.config.num_layers, self._first, self.policy)
        return max(least, math.ceil(Fraction(str(self.budget)) * count))

    def _slots(self, budget: int) -> tuple[int, ...]:
        """Of every layer, for a largest budget; of shares rounded, so that few programs are compiled."""
        may_grow = self.positions != "cache" or self.config.sliding_window is None  # there a window limits slots
        budget = _rounded(budget) if self._is_share and may_grow else budget
        given = self.config, self.policy, self.prompt_policy, budget
        state = jax.eval_shape(lambda: _start(*given, slots=None, positions=self.positions))
        return tuple(layer.num_slots for layer in state.layers)

    def _devices(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)  # kernels need it


def _start(
    config: Config, policy: Policy, prompt_policy: Policy | None, budget: int | Array, *, slots: Any, positions: str
) -> MultiState:
    given = {"slots": slots, "positions": positions, "dtype": None, "prompt_policy": prompt_policy}
    return start_from(config, policy, None, budget, **given)


@partial(jax.jit, static_argnames=("slots", "positions"))
def _start_rows(
    config: Config, policy: Policy, prompt_policy: Policy | None, budgets: Array, *, slots: Any, positions: str
) -> MultiState:
    return jax.vmap(lambda budget: _start(config, policy, prompt_policy, budget, slots=slots, positions=positions))(
        budgets
    )


@jax.jit
def _take(tree: Any, rows: Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def _rounded(count: int) -> int:
    return -(-count // ROOM) * ROOM
