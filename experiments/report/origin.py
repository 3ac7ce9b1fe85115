"""Where numbers came from: settings, versions, hardware, hashes and seconds, without the places of any machine."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.common.console import last_part
from experiments.common.records import OPTIONAL, THROUGHPUT, Records
from experiments.common.study import Record, about

_PLACES = {"checkpoint", "data", "texts", "text", "out"}  # settings that are paths
_PLACE = re.compile(r"^([~/\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\])|://")  # what names a place wherever it stands


class Origin(NamedTuple):
    """What one experiment's results rest on."""

    name: str
    found: int  # results that are there
    planned: int
    seconds: float | None  # of work; None where they are not known
    facts: Mapping[str, str]  # such as model and hardware, for reading
    settings: Mapping[str, Any]
    documents: Mapping[str, str]  # hashes of what was read, by name
    weights: Mapping[str, str]  # their hash, by the dtype that they were cast to

    @property
    def is_complete(self) -> bool:
        return self.found == self.planned


def origins(records: Records) -> list[Origin]:
    """One for every result file that is there."""
    found = [_of(name, record) for name, record in records.found.items()]
    return found if records.throughput is None else [*found, _of_throughput(records.throughput)]


def missing(records: Records) -> list[str]:
    """Every experiment without results, and every one that lacks some or came to none, in words."""
    there = {one.name: one for one in origins(records)}
    said = []
    for name in records.names:
        if name not in there:
            said.append(f"{name}: {records.why(name)}" + (" (optional)" if name in OPTIONAL else ""))
        elif not there[name].is_complete:
            said.append(f"{name}: {there[name].found:,} of {there[name].planned:,} planned results are there")
        wrong = records.found[name].failed if name in records.found else []
        if wrong:
            said.append(
                f"{name}: {len(wrong):,} results came to no number, such as {about(wrong[0])}, and are left out"
            )
    return said


def _of(name: str, record: Record) -> Origin:
    header = record.header
    hashes: dict[str, set[str]] = {}
    for line in (*record.lines, *record.failed):
        hashes.setdefault(line["document"], set()).add(line["sha256"])
    documents = {document: " ".join(sorted(found)) for document, found in hashes.items()}
    counts = record.found, len(header["planned"])
    facts = {**_facts(header), "commit": ", ".join(record.commits)}
    weights = {header["dtype"]: header["model_sha256"]}
    return Origin(name, *counts, record.seconds, facts, shown(header["settings"]), documents, weights)


def _of_throughput(result: Mapping[str, Any]) -> Origin:
    documents = {"text": str(result["text_sha256"])} if "text_sha256" in result else {}
    weights = {str(dtype): str(found) for dtype, found in result.get("model_sha256", {}).items()}
    return Origin(THROUGHPUT, 1, 1, None, _facts(result), shown(result["settings"]), documents, weights)


def _facts(header: Mapping[str, Any]) -> dict[str, str]:
    """Model, dtype, hardware, versions and the code's commit."""
    models = header.get("model_sha256", "unknown")
    if not isinstance(models, str):  # of throughput: one for every dtype
        models = ", ".join(f"{name} {value}" for name, value in models.items())
    facts = {"model": models}
    facts |= {
        name: str(header[name])
        for name in ("dtype", "device", "hardware", "threads", "python", "commit")
        if name in header
    }
    facts["versions"] = ", ".join(f"{name} {value}" for name, value in header.get("versions", {}).items())
    for name in ("jax_enable_x64", "jax_default_matmul_precision"):
        if header.get(name):
            facts[name] = str(header[name])
    return facts


def model_name(found: list[Origin]) -> str:
    """What the models are called, all of them if the results are of several."""
    names = [str(one.settings.get("checkpoint") or one.settings.get("shape") or "") for one in found]
    return ", ".join(dict.fromkeys(filter(None, names))) or "unknown model"


def different_models(found: list[Origin]) -> bool:
    """Whether results that this report puts together are of different weights, as far as they were of one dtype."""
    hashes: dict[str, set[str]] = {}
    for one in found:
        for dtype, weights in one.weights.items():
            hashes.setdefault(dtype, set()).add(weights)
    return any(len(some) > 1 for some in hashes.values())


def shown(settings: Any, name: str = "") -> Any:
    """Settings without the folders of a machine: of a path or an address its last part."""
    if isinstance(settings, Mapping):
        return {key: shown(value, key) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [shown(value, name) for value in settings]
    if isinstance(settings, str) and (name in _PLACES or _PLACE.search(settings)):
        return last_part(settings)
    return settings


def together(documents: Mapping[str, str]) -> str:
    """One hash of all that was read."""
    spelled = "\n".join(f"{name} {documents[name]}" for name in sorted(documents))
    return hashlib.sha256(spelled.encode("utf-8", "surrogatepass")).hexdigest()[:16]
