"""Perplexity of texts under many policies and budgets: which rows to run, and what is said of each."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from msrnn_jax.checkpoint.identity import config_hash, fingerprint
from msrnn_jax.devices.memory import automatic_batch
from msrnn_jax.devices.processes import check_same, from_first
from msrnn_jax.devices.sharding import DATA, spell_mesh
from msrnn_jax.evaluation.losses import read_fidelity, read_losses, read_streams
from msrnn_jax.evaluation.segments import SegmentOrigin
from msrnn_jax.evaluation.settings import Inputs, Plan, Settings, make_plans
from msrnn_jax.evaluation.summary import failed, summarise
from msrnn_jax.evaluation.sweep import Row, batches, fill, read_rows, rows_of
from msrnn_jax.io.atomic import finite
from msrnn_jax.io.errors import lacks_memory
from msrnn_jax.io.journal import Journal, Line
from msrnn_jax.io.provenance import environment, json_hash
from msrnn_jax.policies import Policy

RUN, SEGMENT = "msrnn perplexity run", "msrnn perplexity segment"  # kinds of lines
# What a line must have to be counted.
ROW = {"policy", "policy_sha256", "budget", "batch", "width", *SegmentOrigin._fields, "nats"}
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
    """The state of one measurement: which rows are there, and the batch of every policy."""

    def __init__(
        self,
        settings: Settings,
        inputs: Inputs,
        journal: Journal,
        report: Callable[[Progress], None],
        note: Callable[[str], None],
    ):
        self.settings, self.inputs, self.journal = settings, inputs, journal
        self.width = inputs.segments.tokens.shape[1]  # tokens that segments are padded to
        self.report, self.note = report, note
        self.plans = make_plans(settings, inputs)
        self.full = next((plan for plan in self.plans if plan.is_full), None)
        self.environment = environment()
        self.identity = {
            "environment": json_hash(self.environment),
            "model_sha256": fingerprint(inputs.params),
            "config_sha256": config_hash(inputs.config),
            "dtype": inputs.config.dtype,
            "positions": settings.positions,
            "segment": settings.segment,
            "bos": inputs.segments.bos,  # lines of versions that knew none have no such key, which reads as None
            "mesh": None if inputs.mesh is None else spell_mesh(inputs.mesh),
        }
        self.sharers = 1 if inputs.mesh is None else inputs.mesh.shape[DATA]  # of the rows of a batch
        self.rows: dict[tuple, Line] = {}
        for line in journal.lines:
            self._remember(line)
        asked = {name: value for name, value in _as_json(settings).items() if name not in ("checkpoint", "texts")}
        check_same({**self.identity, **asked, "text_sha256": inputs.text_sha256})  # wherever a host has its copies
        batches = from_first([self._choose_batch(plan) for plan in self.plans])  # the memory of hosts may differ
        self.batch = {plan.policy: batch for plan, batch in zip(self.plans, batches, strict=True)}
        self.streams: dict[int, np.ndarray] = {}  # by segment, [length - 1, D]
        self.compiled: set[tuple[Policy, int]] = set()
        self.done = 0
        self.total = sum(len(plan.budgets) for plan in self.plans) * len(inputs.segments.sources)

    def summaries(self) -> Iterator[Line]:
        """Runs what is missing, Full before the policies that are compared with it."""
        self.journal.append([self._header()])
        waiting, groups = list(self.plans), self._groups()
        for group in groups:
            self.streams.clear()
            ready = set()
            for plan in sorted(self.plans, key=lambda plan: not plan.is_full):
                self._run(plan, group)
                ready.add(plan.policy)
                while group == groups[-1] and waiting and waiting[0].policy in ready:
                    finished = waiting.pop(0)
                    yield from (self._summary(finished, budget) for budget in finished.budgets)

    # Which rows there are.

    def _key(self, plan: Plan, row: Row) -> tuple:
        source = self.inputs.segments.sources[row.segment]
        place = source.document_sha256, source.copy, source.segment_index, source.tokens_sha256
        return str(plan.policy), plan.code, row.budget, *place, self.settings.fidelity

    def _is_mine(self, line: Line) -> bool:
        return all(line.get(name) == value for name, value in self.identity.items())

    def _remember(self, line: Line) -> None:
        """Counts a line if it is one of this measurement; of several for one row the first stands."""
        if not (ROW <= set(line) and self._is_mine(line)):
            return
        for name in {"tokens", "bytes", "batch", "nats", "kl", "agreement"} & set(line):
            if not isinstance(line[name], int | float | None) or isinstance(line[name], bool):
                raise ValueError(f"out holds a line whose {name} is {line[name]!r}; it must be a number")
        setting = line["policy"], line["policy_sha256"], line["budget"]
        place = line["document_sha256"], line["copy"], line["segment_index"], line["tokens_sha256"]
        key = *setting, *place
        self.rows.setdefault((*key, False), line)  # what is compared with the full model has its losses too
        if "kl" in line:
            self.rows.setdefault((*key, True), line)

    def _choose_batch(self, plan: Plan) -> int:
        """What is asked for, else that of rows as wide or of an equal run that are there already, else what fits."""
        rows = -(-len(plan.budgets) * len(self.inputs.segments.sources) // self.sharers) * self.sharers
        if self.settings.batch is not None:
            return min(self.settings.batch, rows)
        policy, fidelity = str(plan.policy), self.settings.fidelity
        mine = [
            line for line in reversed(self.journal.lines) if self._is_mine(line) and line.get("width") == self.width
        ]
        for line in mine:
            if ROW <= set(line) and line["policy"] == policy and ("kl" in line) == fidelity:
                return min(line["batch"], rows)
        for line in mine:
            if line["kind"] == RUN and _asked_in(line) == _as_json(self.settings):
                return min(line["batches"][policy], rows)
        options: Any = {"positions": self.settings.positions, "fidelity": fidelity}
        each = automatic_batch(self.inputs.config, plan.policy, plan.slots, self.width, rows // self.sharers, **options)
        return each * self.sharers

    # Running the others.

    def _groups(self) -> list[range]:
        """Segments in groups whose residual streams fit into the host's memory together."""
        size = number = len(self.inputs.segments.sources)
        if self.settings.fidelity:
            itemsize = self.inputs.params.embedding.dtype.itemsize
            size = max(1, STREAM_BYTES // ((self.width - 1) * self.inputs.config.model_dim * itemsize))
        return [range(start, min(start + size, number)) for start in range(0, number, size)]

    def _run(self, plan: Plan, group: range) -> None:
        before = self.done
        while self.done < before + len(plan.budgets) * len(group):
            self.done = before
            for some in batches(rows_of(plan.budgets, group), self.batch[plan.policy]):
                if not all(self._key(plan, row) in self.rows for row in some) and not self._read(plan, some, group):
                    break
                self.done += len(some)
                self.report(Progress(str(plan.policy), self.done, self.total))

    def _read(self, plan: Plan, rows: Sequence[Row], group: range) -> bool:
        """Runs one batch and writes down what is new in it; False where it is too large and was halved."""
        filled = fill(rows, self.batch[plan.policy])
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
        lines = [self._line(plan, row, kept, index) for index, row in enumerate(rows)]
        count = len(self.journal.lines)
        self.journal.append(
            [line for row, line in zip(rows, lines, strict=True) if self._key(plan, row) not in self.rows]
        )
        for line in self.journal.lines[count:]:
            self._remember(line)
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
                for some in batches(rows, self.batch[self.full.policy]):
                    if segment in [row.segment for row in some]:
                        self._read(self.full, some, group)
        found = [self.streams[segment] for segment in segments]
        padded = np.zeros((len(found), self.width - 1, found[0].shape[1]), found[0].dtype)
        for place, stream in zip(padded, found, strict=True):
            place[: len(stream)] = stream
        return padded

    # What is said of them.

    def _line(self, plan: Plan, row: Row, kept: dict[str, np.ndarray], index: int) -> Line:
        source = self.inputs.segments.sources[row.segment]
        known = [name for name in ("nats", "kl", "agreement") if name in kept]
        sums = {name: float(kept[name][index].sum(dtype=np.float64)) for name in known}
        return {
            "kind": SEGMENT,
            **self.identity,
            "policy": str(plan.policy),
            "policy_sha256": plan.code,
            "budget": row.budget,
            "batch": self.batch[plan.policy],
            "width": self.width,
            "slots": plan.slots,
            **source._asdict(),
            **sums,
        }

    def _header(self) -> Line:
        return {
            "kind": RUN,
            **self.identity,
            **self.environment,
            "settings": _as_json(self.settings),
            "batches": {str(plan.policy): self.batch[plan.policy] for plan in self.plans},
            "width": self.width,
            "text_sha256": self.inputs.text_sha256,
            **_counts(self.inputs),
            "unreadable": list(self.inputs.unreadable),
        }

    def _summary(self, plan: Plan, budget: int) -> Line:
        number = len(self.inputs.segments.sources)
        mine = [self.rows[self._key(plan, Row(budget, index))] for index in range(number)]
        full = None
        if self.full is not None:
            full = [self.rows[self._key(self.full, Row(self.full.budgets[0], index))] for index in range(number)]
        setting = {"policy": str(plan.policy), "budget": budget, "positions": self.settings.positions}
        counts = {**_counts(self.inputs), "batches": sorted({line["batch"] for line in mine})}
        about = {name: value for name, value in self.identity.items() if name != "environment"}
        numbers = summarise(mine, full, fidelity=self.settings.fidelity)
        if numbers["failed_segments"]:
            wrong = next(line for line in mine if failed(line))
            self.note(
                f"{plan.policy}, budget {budget}: {numbers['failed_segments']} of {number} segments came to no number "
                f"and are left out, such as segment {wrong['segment_index']} of {wrong['document']}"
            )
        asked = {name: getattr(self.settings, name) for name in ("checkpoint", "texts", "field", "fidelity")}
        about["text_sha256"] = self.inputs.text_sha256
        return finite({**setting, **numbers, **counts, **about, **self.environment, **asked})


def _counts(inputs: Inputs) -> Line:
    cut = inputs.segments
    return {
        "documents": cut.documents,
        "skipped_documents": cut.skipped,
        "unreadable_documents": len(inputs.unreadable),
    }


def _as_json(settings: Settings) -> Line:
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def _asked_in(line: Line) -> Any:
    """The settings of a run; versions that did not know one of ours did what its default says."""
    asked = line.get("settings")
    return {**_as_json(Settings(checkpoint="")), **asked} if isinstance(asked, dict) else asked
