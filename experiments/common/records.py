"""The result files of all experiments, checked line by line; those that are missing are named, not guessed."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.common.schema import COUNT, OBJECT, SERIES, SIZE, TEXT, Check, Kind, check_fields, is_map
from experiments.common.study import Record, read_record
from msrnn_jax.io.journal import Line

JUDGE, THROUGHPUT = "generation_judge", "throughput"
OPTIONAL = (JUDGE,)  # it needs a judge, a language model somewhere else


class Records(NamedTuple):
    """What was found, by name of the experiment."""

    found: Mapping[str, Record]
    throughput: Mapping[str, Any] | None  # its whole file
    names: tuple[str, ...]  # of all that could be there

    def lines(self, name: str) -> list[Line]:
        """The results of an experiment, none where its file is missing."""
        return [line for line in self.found[name].lines if not is_map(line)] if name in self.found else []

    def maps(self) -> list[Line]:
        """The records of retention themselves, by layer, row of slots and token; none of a book that failed."""
        if "retention" not in self.found:
            return []
        record = self.found["retention"]
        wrong = {line["document"] for line in record.failed}
        return [line for line in record.lines if is_map(line) and line["document"] not in wrong]

    def why(self, name: str) -> str:
        """Why there is no result of an experiment."""
        if name == JUDGE:
            return "it needs a judge: a language model that compares stories, which was not asked"
        if name in self.found:
            return f"{name}.jsonl has none of the results it takes yet"
        return f"there is no {name}.json{'' if name == THROUGHPUT else 'l'}"


def read_records(folder: pathlib.Path, checks: Mapping[str, Check]) -> Records:
    """Reads every result file of a folder, also while an experiment writes to one.

    Args:
      checks: of every experiment by its name.

    Raises:
      ValueError: for a folder without results, and for a file or line that is none.
    """
    if not folder.is_dir():
        raise ValueError(f"results is {str(folder)!r}, which is no folder")
    paths = {name: folder / f"{name}.jsonl" for name in checks}
    found = {name: read_record(path, name, checks[name]) for name, path in paths.items() if path.is_file()}
    whole = folder / f"{THROUGHPUT}.json"
    throughput = _read_throughput(whole) if whole.is_file() else None
    names = (*checks, THROUGHPUT)
    if not found and throughput is None:
        raise ValueError(f"results is {str(folder)!r}, which holds none of {', '.join(names)}")
    return Records(found, throughput, names)


def _read_throughput(path: pathlib.Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        result = None
    if not isinstance(result, dict) or result.get("experiment") != THROUGHPUT:
        raise ValueError(f"results {str(path)!r} are no result of python -m experiments.throughput")
    where = f"results {str(path)!r}"
    check_fields(where, result, {"settings": OBJECT, "versions": OBJECT, "model_sha256?": OBJECT, "memory?": OBJECT})
    memory = result.get("memory", {"rows": []})
    check_fields(where, memory, {"rows": ROWS})
    for number, row in enumerate(memory["rows"], 1):
        check_fields(f"{where}, row {number} of memory", row, ROW)
    return result


def _has(value: Any, name: str, kind: Kind) -> bool:
    return isinstance(value, dict) and kind.holds(value.get(name))


ROWS = Kind("a list of objects", lambda value: isinstance(value, list) and all(map(OBJECT.holds, value)))
TIMED = Kind("null or an object with a batch", lambda one: one is None or _has(one, "batch", SIZE))
RELATIVE = Kind("null or an object with a ratio for each turn", lambda one: one is None or _has(one, "each", SERIES))
ROW = {"dtype": TEXT, "policy": TEXT, "budget": SIZE, "state_bytes": SIZE, "largest_batch": COUNT, "timed?": TIMED}
ROW["relative?"] = RELATIVE
