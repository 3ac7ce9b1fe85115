"""Perplexity of texts under many policies and budgets: which rows to run, and what is said of each."""

import dataclasses
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from msrnn_jax.batch import automatic_batch
from msrnn_jax.checkpoint import fingerprint, load
from msrnn_jax.checks import as_tokens, check_dtype, whole
from msrnn_jax.config import Config
from msrnn_jax.journal import Journal, Line
from msrnn_jax.params import Params
from msrnn_jax.policies import Full, Policy, parse_policy
from msrnn_jax.policies.text import POLICIES
from msrnn_jax.readers import read_fidelity, read_losses, read_streams
from msrnn_jax.record import finite, provenance, text_hash
from msrnn_jax.segments import Segments, Source, cut_documents
from msrnn_jax.summary import summarise
from msrnn_jax.sweep import Row, batches, check_settings, fill, read_rows, rows_of
from msrnn_jax.texts import read_documents
from msrnn_jax.tokenizer import load_tokenizer

RUN, SEGMENT = "msrnn perplexity run", "msrnn perplexity segment"  # kinds of lines

# What a line must have to be counted.
ROW = {"policy", "policy_sha256", "budget", "batch", *Source._fields, "nats"}

STREAM_BYTES = 2**31  # of residual streams of the full model that are kept on the host at once


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured; frozen, and written into the results.

    Attributes:
      checkpoint: folder of the model.
      texts: paths as in `read_documents`; none for the default text.
      field: of a JSON row that holds its text.
      policies: as text.
      budgets: multi-state sizes; a policy that forgets nothing is measured once, with room for a whole segment.
      segment: tokens of a segment.
      segments: measure the first ones only; 0 measures all.
      batch: rows run at once; None: as many as fit.
      positions: how keys are rotated, as in `init_state`.
      dtype: the weights are cast to it; None leaves them as they are.
      fidelity: compare every prediction with the full model's.
    """

    checkpoint: str
    texts: tuple[str, ...] = ()
    field: str = "text"
    policies: tuple[str, ...] = ("full", "tova")
    budgets: tuple[int, ...] = (256,)
    segment: int = 4096
    segments: int = 0
    batch: int | None = None
    positions: str = "absolute"
    dtype: str | None = None
    fidelity: bool = False


class Inputs(NamedTuple):
    """A model and the segments it reads."""

    config: Config
    params: Params
    segments: Segments
    text_sha256: str


class Progress(NamedTuple):
    """How far a measurement is."""

    doing: str
    done: int  # rows
    rows: int  # of all


def read_inputs(settings: Settings) -> Inputs:
    """Loads a model and cuts texts into segments.

    Raises:
      ValueError: for texts or a checkpoint that cannot be used, and for sizes out of range.
    """
    if settings.segment < 2:
        raise ValueError(
            f"segment size is {settings.segment}; it must be at least 2, one token of context and one to predict"
        )
    whole("segments", settings.segments, 0)
    if settings.dtype is not None:
        check_dtype(settings.dtype)
    documents = read_documents(settings.texts, settings.field)
    tokenizer = load_tokenizer(settings.checkpoint)
    segments = cut_documents(tokenizer, documents, settings.segment, settings.segments)
    config, params = load(settings.checkpoint, dtype=settings.dtype)
    as_tokens(config, "the text", segments.tokens)
    return Inputs(config, params, segments, text_hash("\0".join(document.text for document in documents)))


class Plan(NamedTuple):
    """One policy, and the budgets that it is measured at by one program."""

    policy: Policy
    budgets: list[int]
    code: str | None  # hash of the source of a user's own policy

    @property
    def slots(self) -> int:
        return max(self.budgets) + 1

    @property
    def is_full(self) -> bool:
        return self.policy == Full()


def make_plans(settings: Settings, inputs: Inputs) -> list[Plan]:
    """What is measured, in the order asked for; Full comes first where only `fidelity` asks for it.

    Raises:
      ValueError: for any setting that could not be measured: a mistake in the last must not cost the work on
        the first.
    """
    if settings.batch is not None:
        whole("batch", settings.batch, 1)
    policies = list(dict.fromkeys(map(parse_policy, settings.policies)))
    if settings.fidelity and Full() not in policies:
        policies.insert(0, Full())
    lengths = inputs.segments.lengths
    everything = [int(lengths.max()) - 1]
    budgets = list(dict.fromkeys(settings.budgets))
    plans = [Plan(policy, budgets if policy.forgets else everything, _code_of(policy)) for policy in policies]
    for plan in plans:
        check_settings(inputs.config, plan.policy, lengths, plan.budgets, positions=settings.positions)
    return plans


def _code_of(policy: Policy) -> str | None:
    if type(policy) in POLICIES.values():
        return None
    file = getattr(sys.modules.get(type(policy).__module__), "__file__", None)
    return None if file is None else hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()[:16]


def measure(
    settings: Settings,
    inputs: Inputs,
    journal: Journal,
    *,
    report: Callable[[Progress], None] = lambda progress: None,
    note: Callable[[str], None] = lambda line: None,
) -> Iterator[Line]:
    """Measures every policy at every budget, and yields one JSON-ready summary for each pair as it is complete.

    Rows that the journal has already, of the same model, text, settings, versions and device, are not run again.
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
        self.report, self.note = report, note
        self.plans = make_plans(settings, inputs)
        self.full = next((plan for plan in self.plans if plan.is_full), None)
        self.environment = environment()
        self.identity = {
            "environment": _hash(self.environment),
            "model_sha256": fingerprint(inputs.params),
            "text_sha256": inputs.text_sha256,
            "dtype": inputs.config.dtype,
            "positions": settings.positions,
            "segment": settings.segment,
        }
        self.rows: dict[tuple, Line] = {}
        for line in journal.lines:
            self._remember(line)
        self.batch = {plan.policy: self._choose_batch(plan) for plan in self.plans}
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
        place = source.document_index, source.segment_index, source.tokens_sha256
        return str(plan.policy), plan.code, row.budget, *place, self.settings.fidelity

    def _remember(self, line: Line) -> None:
        """Counts a line if it is one of this measurement; of several for one row the first stands."""
        if (
            line["kind"] != SEGMENT
            or not ROW <= set(line)
            or any(line.get(name) != value for name, value in self.identity.items())
        ):
            return
        setting = line["policy"], line["policy_sha256"], line["budget"]
        key = *setting, line["document_index"], line["segment_index"], line["tokens_sha256"]
        self.rows.setdefault((*key, False), line)  # what is compared with the full model has its losses too
        if "kl" in line:
            self.rows.setdefault((*key, True), line)

    def _choose_batch(self, plan: Plan) -> int:
        """What is asked for, else that of rows or of an equal run that are there already, else what fits."""
        rows = len(plan.budgets) * len(self.inputs.segments.sources)
        if self.settings.batch is not None:
            return min(self.settings.batch, rows)
        policy, fidelity = str(plan.policy), self.settings.fidelity
        for line in reversed(self.journal.lines):
            mine = all(line.get(name) == value for name, value in self.identity.items())
            if mine and line["kind"] == SEGMENT and line["policy"] == policy and ("kl" in line) == fidelity:
                return min(line["batch"], rows)
        for line in reversed(self.journal.lines):
            mine = all(line.get(name) == value for name, value in self.identity.items())
            if mine and line["kind"] == RUN and line["settings"] == _as_json(self.settings):
                return min(line["batches"][policy], rows)
        width = self.inputs.segments.tokens.shape[1]
        options: Any = {"positions": self.settings.positions, "fidelity": fidelity}
        return automatic_batch(self.inputs.config, plan.policy, plan.slots, width, rows, **options)

    # Running the others.

    def _groups(self) -> list[range]:
        """Segments in groups whose residual streams fit into the host's memory together."""
        number, width = self.inputs.segments.tokens.shape
        size = number
        if self.settings.fidelity:
            itemsize = self.inputs.params.embedding.dtype.itemsize
            size = max(1, STREAM_BYTES // ((width - 1) * self.inputs.config.model_dim * itemsize))
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
            )
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
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
        if batch == 1:
            raise MemoryError(str(error)) from error
        self.batch[plan.policy] = batch // 2
        self.note(f"{plan.policy}: a batch of {batch} rows needs more memory than there is; going on with {batch // 2}")

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
        width = self.inputs.segments.tokens.shape[1] - 1
        padded = np.zeros((len(found), width, found[0].shape[1]), found[0].dtype)
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
            "slots": plan.slots,
            **source._asdict(),
            **sums,
        }

    def _header(self) -> Line:
        segments = self.inputs.segments
        return {
            "kind": RUN,
            **self.identity,
            **self.environment,
            "settings": _as_json(self.settings),
            "batches": {str(plan.policy): self.batch[plan.policy] for plan in self.plans},
            **_counts(segments),
        }

    def _summary(self, plan: Plan, budget: int) -> Line:
        number = len(self.inputs.segments.sources)
        mine = [self.rows[self._key(plan, Row(budget, index))] for index in range(number)]
        full = None
        if self.full is not None:
            full = [self.rows[self._key(self.full, Row(self.full.budgets[0], index))] for index in range(number)]
        setting = {"policy": str(plan.policy), "budget": budget, "positions": self.settings.positions}
        counts = {**_counts(self.inputs.segments), "batches": sorted({line["batch"] for line in mine})}
        about = {name: value for name, value in self.identity.items() if name != "environment"}
        return finite({**setting, **summarise(mine, full), **counts, **about, **self.environment})


def _counts(segments: Segments) -> Line:
    return {"documents": segments.documents, "skipped_documents": segments.skipped}


def _as_json(settings: Settings) -> Line:
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def environment() -> Line:
    """What the last digits of a number depend on beside the model: versions, device, and how JAX computes."""
    options = {name: getattr(jax.config, name) for name in ("jax_enable_x64", "jax_default_matmul_precision")}
    return {**provenance(), **options}


def _hash(value: Line) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def decimals(value: float | None, places: int) -> str:
    """A number of a row for reading, `-` where it is none (nan, inf)."""
    return "-" if value is None else f"{value:.{places}f}"
