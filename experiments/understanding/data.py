"""SQuALITY and QASPER from files and folders; a bad row is left out, and told of with its place."""

import codecs
import functools
import json
import pathlib
from collections.abc import Iterator, Sequence

from rich.console import Console

from experiments.shown import left_out_note
from experiments.understanding.documents import Document, Row
from experiments.understanding.qasper import read_paper
from experiments.understanding.squality import read_story
from msrnn_jax.files import called, decoded, read_bytes, read_rows
from msrnn_jax.json_rows import check, parse
from msrnn_jax.leaving_out import Note, left_out, what_remains

KIND = "data file"
SUFFIXES = (".json", ".jsonl")  # what is taken from a folder
READERS = {"questions": read_story, "qas": read_paper}  # by a field that only their rows have


def read_data(paths: Sequence[str], tasks: Sequence[str], console: Console) -> list[Document]:
    """Reads SQuALITY and QASPER; which of them a file holds is seen from its rows.

    Args:
      paths: files, or folders, of which every .json and .jsonl below is taken that holds either.
      tasks: the ones that are wanted; none for whatever there is.
      console: where a note is printed of every row, question and file of a folder that is left out, since it cannot be
        read: naming file, line or row, and what is wrong with it.

    Raises:
      ValueError: for a file that is named itself and cannot be read or holds neither, a question that comes twice, and
        a wanted task that is not there; and where nothing can be read.
    """
    if not paths:
        raise ValueError("data is missing; name files or folders of SQuALITY or QASPER with --data")
    documents = what_remains(functools.partial(_all, paths), left_out_note(console))
    seen: set[tuple[str, str]] = set()
    for document in documents:
        for question in document.questions:
            if (document.task, question.name) in seen:
                raise ValueError(f"data has the {document.task} question {question.name!r} twice; it counts once")
            seen.add((document.task, question.name))
    there = dict.fromkeys(document.task for document in documents if document.questions)
    for task in tasks:
        if task not in there:
            raise ValueError(f"data has no question of {task}; it has those of {', '.join(there) or 'none'}")
    if not there:
        raise ValueError("data has no question")
    return [document for document in documents if document.questions and (not tasks or document.task in tasks)]


def _all(paths: Sequence[str], unreadable: Note) -> Iterator[Document]:
    for path in paths:
        place = pathlib.Path(path)
        if not path or not place.exists():
            raise ValueError(f"data {path!r} does not exist")
        if place.is_dir():
            files = sorted(file for file in place.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not files:
                raise ValueError(f"data folder {path!r} has no .json or .jsonl file in it")
            for file in files:
                with left_out(unreadable):
                    yield from _read_file(file, unreadable)
        else:
            yield from _read_file(place, unreadable)  # what is named itself is meant


def _read_file(path: pathlib.Path, unreadable: Note) -> Iterator[Document]:
    problems: list[str] = []
    rows = list(_rows(path, problems.append))
    fields = {name for row in rows if isinstance(row.content, dict) for name in row.content}
    reader = next((READERS[name] for name in READERS if name in fields), None)
    if reader is None:
        what = f"{called(path, KIND)} holds neither SQuALITY (rows with 'questions') nor QASPER (rows with 'qas')"
        raise ValueError(": ".join([what, *problems[:1]]))
    for problem in problems:
        unreadable(problem)
    for row in rows:
        with left_out(unreadable):
            yield reader(row, unreadable)


def _rows(path: pathlib.Path, unreadable: Note) -> Iterator[Row]:
    """The rows of a file: lines, an array, or an object of objects."""
    name, content = called(path, KIND), read_bytes(path, KIND)
    if path.suffix.lower() == ".jsonl" or _has_lines(content):
        for _, where, row in read_rows(name, content, unreadable):
            yield Row(where, row)
        return
    whole = parse(decoded(name, content), name)
    if isinstance(whole, list):
        yield from (Row(f"{name}, row {number}", row) for number, row in enumerate(whole, 1))
    else:
        check(whole, dict, name)
        if any(field in whole for field in READERS):
            yield Row(f"{name}, line 1", whole)
        else:
            yield from (Row(f"{name}, paper {key!r}", row, key) for key, row in whole.items())


def _has_lines(content: bytes) -> bool:
    """Whether a .json file has a row in every line: there are several, and the first is JSON by itself."""
    lines = [line for line in content.removeprefix(codecs.BOM_UTF8).split(b"\n") if line.strip()]
    try:
        json.loads(lines[0])
    except (IndexError, ValueError, RecursionError):
        return False
    return len(lines) > 1
