"""Perplexity of texts under many policies and budgets: which batches run, and in which order."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from msrnn_jax.devices.memory import automatic_batch
from msrnn_jax.devices.processes import from_first
from msrnn_jax.devices.sharding import DATA
from msrnn_jax.evaluation.losses import read_fidelity, read_losses, read_streams
from msrnn_jax.evaluation.records import Records
from msrnn_jax.evaluation.settings import Inputs, Plan, Settings, make_plans
from msrnn_jax.evaluation.sweep import Row, cut_batches, fill_batch, read_rows, rows_of
from msrnn_jax.io.errors import lacks_memory
from msrnn_jax.io.journal import Journal, Line
from msrnn_jax.policies import Policy

STREAM_BYTES = 2**31  # of residual streams of the full model that are kept on the host at once


class Progress(NamedTuple):
    """How far a measurement is."""

    doing: str
    done: int  # rows
    rows: int  # of all


def measure(
    settings: Settings,
    inputs: Inputs,
    journal: Journal,
    *,
    report: Callable[[Progress], None] = lambda progress: None,
    note: Callable[[str], None] = lambda line: None,
) -> Iterator[Line]:
    """Measures every policy at every budget, and yields one JSON-ready summary for each pair as it is complete.

    Rows that the journal has already, of the same model, document, settings, versions and device, are not run again.
    All others run in batches that a run which was never cut off would make, so that their numbers are its own.

    Args:
      report: called before and after every batch.
      note: called with what a user should be told.
    """
    return _Run(settings, inputs, journal, report, note).summaries()


class _Run:
    """One measurement under way: the batch of every policy, and what is kept of the full model."""

    def __init__(
        self,
        settings: Settings,
        inputs: Inputs,
        journal: Journal,
        report: Callable[[Progress], None],
        note: Callable[[str], None],
    ):
        self.settings, self.inputs = settings, inputs
        self.report, self.note = report, note
        self.plans = make_plans(settings, inputs)
        self.full = next((plan for plan in self.plans if plan.is_full), None)
        self.records = Records(settings, inputs, journal)
        self.sharers = 1 if inputs.mesh is None else inputs.mesh.shape[DATA]  # of the rows of a batch
        batches = from_first([self._choose_batch(plan) for plan in self.plans])  # the memory of hosts may differ
        self.batch = {plan.policy: batch for plan, batch in zip(self.plans, batches, strict=True)}
        self.streams: dict[int, np.ndarray] = {}  # by segment, [length - 1, D]
        self.compiled: set[tuple[Policy, int]] = set()
        self.done = 0
        self.total = sum(len(plan.budgets) for plan in self.plans) * len(inputs.segments.sources)

    def summaries(self) -> Iterator[Line]:
        """Runs what is missing, Full before the policies that are compared with it."""
        self.records.begin({str(plan.policy): self.batch[plan.policy] for plan in self.plans})
        waiting, groups = list(self.plans), self._groups()
        for group in groups:
            self.streams.clear()
            ready = set()
            for plan in sorted(self.plans, key=lambda plan: not plan.is_full):
                self._run(plan, group)
                ready.add(plan.policy)
                while group == groups[-1] and waiting and waiting[0].policy in ready:
                    finished = waiting.pop(0)
                    for budget in finished.budgets:
                        yield self.records.summary(finished, budget, self.full, self.note)

    def _choose_batch(self, plan: Plan) -> int:
        """What is asked for, else that of lines that are there already, else what fits."""
        rows = -(-len(plan.budgets) * len(self.inputs.segments.sources) // self.sharers) * self.sharers
        known = self.settings.batch if self.settings.batch is not None else self.records.batch_of(plan)
        if known is not None:
            return min(known, rows)
        each = automatic_batch(
            self.inputs.config,
            plan.policy,
            plan.slots,
            self.records.width,
            rows // self.sharers,
            positions=self.settings.positions,
            fidelity=self.settings.fidelity,
        )
        return each * self.sharers

    def _groups(self) -> list[range]:
        """Segments in groups whose residual streams fit into the host's memory together."""
        size = number = len(self.inputs.segments.sources)
        if self.settings.fidelity:
            itemsize = self.inputs.params.embedding.dtype.itemsize
            size = max(1, STREAM_BYTES // ((self.records.width - 1) * self.inputs.config.model_dim * itemsize))
        return [range(start, min(start + size, number)) for start in range(0, number, size)]

    def _run(self, plan: Plan, group: range) -> None:
        before = self.done
        while self.done < before + len(plan.budgets) * len(group):
            self.done = before
            for some in cut_batches(rows_of(plan.budgets, group), self.batch[plan.policy]):
                if not all(self.records.has(plan, row) for row in some) and not self._read(plan, some, group):
                    break
                self.done += len(some)
                self.report(Progress(str(plan.policy), self.done, self.total))

    def _read(self, plan: Plan, rows: Sequence[Row], group: range) -> bool:
        """Runs one batch and writes down what is new in it; False where it is too large and was halved."""
        filled = fill_batch(rows, self.batch[plan.policy])
        compares = self.settings.fidelity and not plan.is_full
        full = self._streams_of([row.segment for row in filled], group) if compares else None
        program = plan.policy, len(filled)
        doing = str(plan.policy) if program in self.compiled else f"compiling {plan.policy}"
        self.report(Progress(doing, self.done, self.total))
        try:
            kept = read_rows(
                self.inputs.config,
                plan.policy,
                self.inputs.params,
                self.inputs.segments.tokens,
                self.inputs.segments.lengths,
                filled,
                slots=plan.slots,
                positions=self.settings.positions,
                reader=read_fidelity if compares else read_streams if self.settings.fidelity else read_losses,
                full=full,
                mesh=self.inputs.mesh,
            )
        except jax.errors.JaxRuntimeError as error:
            if not lacks_memory(error):
                raise
            if jax.process_count() > 1:  # the others know nothing of it
                raise MemoryError(f"{error}; give a smaller --batch than {self.batch[plan.policy]}") from error
            self._halve(plan, error)
            return False
        self.compiled.add(program)
        for index, row in enumerate(rows):
            if "x" in kept:
                self.streams[row.segment] = kept["x"][index, : self.inputs.segments.lengths[row.segment] - 1]
        self.records.add(plan, rows, kept, self.batch[plan.policy])
        return True

    def _halve(self, plan: Plan, error: Exception) -> None:
        batch = self.batch[plan.policy]
        if batch == self.sharers:
            raise MemoryError(str(error)) from error
        half = batch // self.sharers // 2 * self.sharers
        self.batch[plan.policy] = half
        self.note(f"{plan.policy}: a batch of {batch} rows needs more memory than there is; going on with {half}")

    def _streams_of(self, segments: Sequence[int], group: range) -> np.ndarray:
        """The full model's residual streams [B, T - 1, D], computed again where a run goes on that was cut off."""
        assert self.full is not None
        for segment in segments:
            while segment not in self.streams:
                rows = rows_of(self.full.budgets, group)
                for some in cut_batches(rows, self.batch[self.full.policy]):
                    if segment in [row.segment for row in some]:
                        self._read(self.full, some, group)
        found = [self.streams[segment] for segment in segments]
        padded = np.zeros((len(found), self.records.width - 1, found[0].shape[1]), found[0].dtype)
        for place, stream in zip(padded, found, strict=True):
            place[: len(stream)] = stream
        return padded
