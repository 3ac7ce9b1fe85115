"""The results of one experiment as JSON lines: one for every setting and document, written as soon as it is known."""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from rich.console import Console

from experiments.common.console import say
from experiments.common.origin import commit, hardware
from experiments.common.schema import IDENTITY, Check, check_lines
from msrnn_jax.io.journal import Journal, Line, open_journal, read_journal
from msrnn_jax.io.provenance import environment, json_hash

Numbers = Mapping[str, Any]  # JSON values; nan and inf become null


class Key(NamedTuple):
    """What one line is about. Everything that its numbers depend on, beside the model and the machine, is here."""

    setting: Mapping[str, Any]  # JSON values, such as {"policy": "tova", "budget": 64}
    document: str  # its name
    sha256: str  # of what is read of it, 16 hex digits


class Unit(NamedTuple):
    """Lines that are worked out together, always the same ones: so a run that was cut off ends in the same numbers."""

    keys: Sequence[Key]
    work: Callable[[], Sequence[Numbers]]  # what is found for every key, in their order


class Study:
    """One experiment's results: those of an earlier run that still hold, and those of this one.

    Attributes:
      name: of the experiment.
      plan: what this run is to find, in order.
    """

    def __init__(self, journal: Journal, name: str, identity: Mapping[str, Any], plan: Sequence[Key]):
        self.name, self.plan = name, list(plan)
        self._journal, self._identity = journal, dict(identity)
        self._found = find(journal.lines, self._identity)
        spelled = [spell(key) for key in self.plan]
        if len(set(spelled)) < len(spelled):
            twice = next(key for index, key in enumerate(self.plan) if spelled[index] in spelled[:index])
            raise ValueError(f"{twice.document!r} under {dict(twice.setting)} is asked for twice; it counts once")

    def lacks(self, key: Key) -> bool:
        """Whether this has still to be found."""
        return spell(key) not in self._found

    def add(self, keys: Sequence[Key], results: Sequence[Numbers], seconds: float) -> None:
        """Writes down what was found, but for what was there already, by one write."""
        lines = [
            {
                "kind": f"{self.name} result",
                **self._identity,
                "setting": dict(key.setting),
                "document": key.document,
                "sha256": key.sha256,
                **numbers,
                **({} if _are_numbers(numbers) else {"failed": True}),
                "seconds": round(seconds / len(keys), 3),
            }
            for key, numbers in zip(keys, results, strict=True)
            if self.lacks(key)
        ]
        count = len(self._journal.lines)
        self._journal.append(lines)
        self._found |= find(self._journal.lines[count:], self._identity)

    def complete(self, units: Sequence[Unit], console: Console) -> list[Line]:
        """Works through the units that have something missing, and returns the lines of the plan, in its order.

        Compiled programs are freed wherever no policy that was measured comes again. A process can hold those of some
        thirty policies; with more, its memory map is full and compilation fails.

        Lines of what came to no number are left out, and spoken of.

        Raises:
          ValueError: where all came to none.
        """
        done = len(self.plan) - sum(map(self.lacks, self.plan))
        if done:
            console.print(f"{self.name}: {done} of {len(self.plan)} results are there already", highlight=False)
        with console.status(f"{self.name}: starting") as status:
            free = _frees(units)
            for index, unit in enumerate(units):
                if index in free:
                    jax.clear_caches()
                missing = sum(map(self.lacks, unit.keys))
                if not missing:
                    continue
                first = unit.keys[0]
                message = f"{self.name}: {done} of {len(self.plan)}, {first.document}, {_brief(first.setting)}"
                status.update(message)
                if not console.is_terminal:
                    say(console, message)
                start = time.perf_counter()
                results = unit.work()
                self.add(unit.keys, results, time.perf_counter() - start)
                done += missing
        return self._sound([self._found[spell(key)] for key in self.plan], console)

    def _sound(self, lines: list[Line], console: Console) -> list[Line]:
        wrong = list(filter(failed, lines))
        if wrong:
            said = f"{len(wrong):,} of {len(lines):,} results came to no number, such as {about(wrong[0])}"
            if len(wrong) == len(lines):
                raise ValueError(f"{self.name}: {said}; the model must compute numbers")
            say(console, f"note: {said}, and are left out")
        return [line for line in lines if not failed(line)]


def _frees(units: Sequence[Unit]) -> set[int]:
    """The units before which all policies are done that were begun, and others come."""
    policies = [unit.keys[0].setting.get("policy") for unit in units]
    last = {policy: index for index, policy in enumerate(policies)}
    free, end = set(), 0
    for index, policy in enumerate(policies):
        if index > end:
            free.add(index)
        end = max(end, last[policy])
    return free


def _are_numbers(numbers: Numbers) -> bool:
    try:
        json.dumps(dict(numbers), allow_nan=False)
    except ValueError:
        return False
    return True


def failed(line: Line) -> bool:
    """Whether something of a result is nan or inf, null in the file: the rest of it counts no more."""
    return "failed" in line


def about(line: Line) -> str:
    """What a result is of, in words."""
    return f"{line['document']} ({_brief(line['setting'])})"


@contextlib.contextmanager
def open_study(
    path: pathlib.Path,
    name: str,
    settings: Any,
    model: Mapping[str, Any],
    plan: Sequence[Key],
    check: Check | None = None,
) -> Iterator[Study]:
    """Opens a file of results, whose lines of an equal model and machine count, and says in it what is asked now.

    Args:
      path: a .jsonl file, which no other process may be writing.
      name: of the experiment.
      settings: its frozen dataclass.
      model: what every number depends on, see `Model.about`.
      plan: what is to be found.
      check: of every result that is there.

    Raises:
      ValueError: for a path that cannot be written or holds anything else, and for a plan that asks for anything twice.
    """
    machine = environment()
    identity = {"experiment": name, **model, "environment": json_hash(machine)}
    with open_journal(path, (f"{name} run", f"{name} result")) as journal:
        check_lines(path, name, journal.lines, check)
        study = Study(journal, name, identity, plan)
        header = {
            "kind": f"{name} run",
            **identity,
            **machine,
            "hardware": hardware(),
            "commit": commit(),
            "settings": json.loads(json.dumps(dataclasses.asdict(settings), default=str)),
            "planned": [spell(key) for key in plan],
        }
        latest = next((line for line in reversed(journal.lines) if line["kind"] == header["kind"]), None)
        if latest != header:
            journal.append([header])
        yield study


def complete(
    path: pathlib.Path,
    name: str,
    settings: Any,
    model: Mapping[str, Any],
    units: Sequence[Unit],
    console: Console,
    check: Check | None = None,
) -> list[Line]:
    """Works out what is missing of an experiment, and returns all its lines, in the order of the units.

    Args, raises: as `open_study`, whose plan is what the units find.
    """
    plan = [key for unit in units for key in unit.keys]
    with open_study(path, name, settings, model, plan, check) as study:
        return study.complete(units, console)


class Record(NamedTuple):
    """A file of results, as a reader finds it."""

    header: Line  # of the latest run
    lines: list[Line]  # what it asked for and came to numbers, in its order
    failed: list[Line]  # what came to none
    commits: list[str]  # of the code that found these, in the order of the file

    @property
    def is_complete(self) -> bool:
        return self.found == len(self.header["planned"])

    @property
    def found(self) -> int:
        """Results that are there, whatever they came to."""
        return len(self.lines) + len(self.failed)

    @property
    def seconds(self) -> float:
        """Of work on these lines, whenever it was done."""
        return sum(line["seconds"] for line in (*self.lines, *self.failed))


def read_record(path: pathlib.Path, name: str, check: Check | None = None) -> Record:
    """Reads what the latest run of an experiment asked for, as far as it is there; another may be under way.

    Raises:
      ValueError: for a file that is missing or holds anything else.
    """
    if not path.is_file():
        raise ValueError(f"results {str(path)!r} do not exist; python -m experiments.{name} makes them")
    lines = read_journal(path, (f"{name} run", f"{name} result"))
    check_lines(path, name, lines, check)
    headers = [line for line in lines if line["kind"] == f"{name} run"]
    if not headers:
        raise ValueError(f"results {str(path)!r} hold no run; python -m experiments.{name} makes them")
    found = find(lines, {key: headers[-1].get(key) for key in IDENTITY})
    mine = [found[key] for key in headers[-1]["planned"] if key in found]
    sound = [line for line in mine if not failed(line)]
    return Record(headers[-1], sound, list(filter(failed, mine)), _commits(lines, mine))


def _commits(lines: Iterable[Line], mine: Sequence[Line]) -> list[str]:
    """The code that some of these lines were found by: every run writes its own above its first."""
    wanted, commit, found = set(map(id, mine)), "unknown", dict[str, None]()
    for line in lines:
        if line["kind"].endswith(" run"):
            commit = str(line.get("commit", "unknown"))
        elif id(line) in wanted:
            found[commit] = None
    return list(found)


def find(lines: Iterable[Line], identity: Mapping[str, Any]) -> dict[str, Line]:
    """Results by what they are about; of several for one thing the first stands."""
    found: dict[str, Line] = {}
    for line in lines:
        if line["kind"].endswith(" result") and all(line.get(name) == value for name, value in identity.items()):
            found.setdefault(spell(Key(line["setting"], line["document"], line["sha256"])), line)
    return found


def spell(key: Key) -> str:
    """A short name for a key, equal for equal ones: a hash, so that a header with thousands of them stays small."""
    return json_hash([key.setting, key.document, key.sha256])


def _brief(setting: Mapping[str, Any]) -> str:
    return ", ".join(str(value) for value in setting.values())
