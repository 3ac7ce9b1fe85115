"""The lines of a measurement: which are there already, which are written, and what they say together."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from msrnn_jax.checkpoint.identity import config_hash, fingerprint
from msrnn_jax.devices.processes import check_same
from msrnn_jax.devices.sharding import spell_mesh
from msrnn_jax.evaluation.segments import SegmentOrigin
from msrnn_jax.evaluation.settings import Inputs, Plan, Settings
from msrnn_jax.evaluation.summary import failed, summarise
from msrnn_jax.evaluation.sweep import Row
from msrnn_jax.io.atomic import finite
from msrnn_jax.io.journal import Journal, Line
from msrnn_jax.io.provenance import environment, json_hash

RUN, SEGMENT = "msrnn perplexity run", "msrnn perplexity segment"  # kinds of lines
# What a line must have to be counted.
ROW = {"policy", "policy_sha256", "budget", "batch", "width", *SegmentOrigin._fields, "nats"}


class Records:
    """Lines by what they are of; those of another model, document, setting, version or device do not count."""

    def __init__(self, settings: Settings, inputs: Inputs, journal: Journal):
        self.settings, self.inputs, self.journal = settings, inputs, journal
        self.width = inputs.segments.tokens.shape[1]  # tokens that segments are padded to
        self.environment = environment()
        self.identity = {
            "environment": json_hash(self.environment),
            "model_sha256": fingerprint(inputs.config, inputs.params),
            "config_sha256": config_hash(inputs.config),
            "dtype": inputs.config.dtype,
            "positions": settings.positions,
            "segment": settings.segment,
            "bos": inputs.segments.bos,  # lines of versions that knew none have no such key, which reads as None
            "mesh": None if inputs.mesh is None else spell_mesh(inputs.mesh),
        }
        self._rows: dict[tuple, Line] = {}
        for line in journal.lines:
            self._count(line)
        asked = {name: value for name, value in _as_json(settings).items() if name not in ("checkpoint", "texts")}
        check_same({**self.identity, **asked, "text_sha256": inputs.text_sha256})  # wherever a host has its copies

    def has(self, plan: Plan, row: Row) -> bool:
        """Whether the line of a row is there."""
        return self._key(plan, row) in self._rows

    def _key(self, plan: Plan, row: Row) -> tuple:
        source = self.inputs.segments.sources[row.segment]
        place = source.document_sha256, source.copy, source.segment_index, source.tokens_sha256
        return str(plan.policy), plan.code, row.budget, *place, self.settings.fidelity

    def _is_mine(self, line: Line) -> bool:
        return all(line.get(name) == value for name, value in self.identity.items())

    def _count(self, line: Line) -> None:
        """Counts a line if it is one of this measurement; of several for one row the first stands."""
        if not (ROW <= set(line) and self._is_mine(line)):
            return
        for name in {"tokens", "bytes", "batch", "nats", "kl", "agreement"} & set(line):
            if not isinstance(line[name], int | float | None) or isinstance(line[name], bool):
                raise ValueError(f"out holds a line whose {name} is {line[name]!r}; it must be a number")
        setting = line["policy"], line["policy_sha256"], line["budget"]
        place = line["document_sha256"], line["copy"], line["segment_index"], line["tokens_sha256"]
        key = *setting, *place
        self._rows.setdefault((*key, False), line)  # what is compared with the full model has its losses too
        if "kl" in line:
            self._rows.setdefault((*key, True), line)

    def batch_of(self, plan: Plan) -> int | None:
        """The batch of rows as wide that are there already, or else of an equal run; None where there is neither."""
        policy, fidelity = str(plan.policy), self.settings.fidelity
        mine = [
            line for line in reversed(self.journal.lines) if self._is_mine(line) and line.get("width") == self.width
        ]
        for line in mine:
            if ROW <= set(line) and line["policy"] == policy and ("kl" in line) == fidelity:
                return line["batch"]
        for line in mine:
            if line["kind"] == RUN and _asked_in(line) == _as_json(self.settings):
                return line["batches"][policy]
        return None

    def begin(self, batches: dict[str, int]) -> None:
        """Says what this run is asked for, and how many rows every policy runs at once."""
        header = {
            "kind": RUN,
            **self.identity,
            **self.environment,
            "settings": _as_json(self.settings),
            "batches": batches,
            "width": self.width,
            "text_sha256": self.inputs.text_sha256,
            **_counts(self.inputs),
            "unreadable": list(self.inputs.unreadable),
        }
        self.journal.append([header])

    def add(self, plan: Plan, rows: Sequence[Row], kept: dict[str, np.ndarray], batch: int) -> None:
        """Writes the lines of rows that are not there yet.

        Args:
          kept: sums over these are what the lines say: [B, T - 1], in the order of the rows.
        """
        lines = [
            self._line(plan, row, {name: values[index] for name, values in kept.items()}, batch)
            for index, row in enumerate(rows)
            if not self.has(plan, row)
        ]
        before = len(self.journal.lines)
        self.journal.append(lines)
        for line in self.journal.lines[before:]:
            self._count(line)

    def _line(self, plan: Plan, row: Row, kept: dict[str, np.ndarray], batch: int) -> Line:
        known = [name for name in ("nats", "kl", "agreement") if name in kept]
        return {
            "kind": SEGMENT,
            **self.identity,
            "policy": str(plan.policy),
            "policy_sha256": plan.code,
            "budget": row.budget,
            "batch": batch,
            "width": self.width,
            "slots": plan.slots,
            **self.inputs.segments.sources[row.segment]._asdict(),
            **{name: float(kept[name].sum(dtype=np.float64)) for name in known},
        }

    def summary(self, plan: Plan, budget: int, full: Plan | None, note: Callable[[str], None]) -> Line:
        """What all segments say together of one policy at one budget.

        Args:
          full: what it is compared with, if anything.
          note: called with how many segments came to no number.
        """
        number = len(self.inputs.segments.sources)
        mine = [self._rows[self._key(plan, Row(budget, index))] for index in range(number)]
        theirs = None
        if full is not None:
            theirs = [self._rows[self._key(full, Row(full.budgets[0], index))] for index in range(number)]
        setting = {"policy": str(plan.policy), "budget": budget, "positions": self.settings.positions}
        counts = {**_counts(self.inputs), "batches": sorted({line["batch"] for line in mine})}
        about = {name: value for name, value in self.identity.items() if name != "environment"}
        numbers = summarise(mine, theirs, fidelity=self.settings.fidelity)
        if numbers["failed_segments"]:
            wrong = next(line for line in mine if failed(line))
            note(
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
