"""SQuALITY and QASPER from files and folders; a bad row is left out, and told of with its place."""

import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console

from experiments.common.console import left_out_note
from experiments.understanding.documents import Document, Question, Row
from experiments.understanding.qasper import read_paper
from experiments.understanding.squality import read_story
from msrnn_jax.io.files import (
    OnProblem,
    decode_utf8,
    file_label,
    read_bytes,
    read_each,
    read_remaining,
    read_rows,
    skipping,
)
from msrnn_jax.io.json_fields import check_kind, field_names, parse_json

KIND = "data file"
SUFFIXES = (".json", ".jsonl")  # what is taken from a folder
READERS = {"questions": read_story, "qas": read_paper}  # by a field that only their rows have


def read_data(paths: Sequence[str], tasks: Sequence[str], console: Console) -> list[Document]:
    """Reads SQuALITY and QASPER; which of them a file holds is seen from its rows.

    Args:
      paths: files, or folders, of which every .json and .jsonl below is taken that holds either.
      tasks: the ones that are wanted; none for whatever there is.
      console: where a note is printed of every row, question and file of a folder that is left out, since it cannot be
        read or was there before: naming file, line or row, and what is wrong with it.

    Raises:
      ValueError: for a file that is named itself and cannot be read or holds neither, and for a wanted task that is not
        there; and where there is no question.
    """
    if not paths:
        raise ValueError("data is missing; name files or folders of SQuALITY or QASPER with --data")
    documents = read_remaining(functools.partial(_all, paths), left_out_note(console))
    there = dict.fromkeys(document.task for document in documents)
    for task in tasks:
        if task not in there:
            raise ValueError(f"data has no question of {task}; it has those of {', '.join(there) or 'none'}")
    return [document for document in documents if not tasks or document.task in tasks]


def _all(paths: Sequence[str], unreadable: OnProblem) -> Iterator[Document]:
    asked: dict[tuple[str, str], str] = {}

    def read(path: str, is_named: bool) -> Iterator[Document]:
        del is_named
        return _read_file(pathlib.Path(path), asked, unreadable)

    return read_each(paths, SUFFIXES, KIND, read, unreadable)


def _read_file(path: pathlib.Path, asked: dict[tuple[str, str], str], unreadable: OnProblem) -> Iterator[Document]:
    """The documents of a file, without questions that are among `asked`, where each was; these are put there."""
    problems: list[str] = []
    rows = _rows(path, problems.append)
    if not any(map(_reader, rows)):
        what = f"{file_label(path, KIND)} holds neither SQuALITY (rows with 'questions') nor QASPER (rows with 'qas')"
        raise ValueError(": ".join([what, *problems[:1]]))
    for problem in problems:
        unreadable(problem)
    for row in rows:
        with skipping(unreadable):
            check_kind(row.content, dict, row.where)
            reader = _reader(row)
            if reader is None:
                wanted = " nor ".join(map(repr, READERS))
                raise ValueError(f"{row.where} has neither {wanted}; its fields are {field_names(row.content)}")
            document = reader(row, unreadable)
            new = []
            for question in document.questions:
                with skipping(unreadable):
                    _once(document, question, row, asked)
                    new.append(question)
            if new:
                yield document._replace(questions=tuple(new))


def _once(document: Document, question: Question, row: Row, asked: dict[tuple[str, str], str]) -> None:
    key = document.task, question.name
    if key in asked:
        raise ValueError(f"{row.where}: question {question.name!r} is in {asked[key]} already; it counts once")
    asked[key] = row.where


def _reader(row: Row) -> Callable[[Row, OnProblem], Document] | None:
    fields = row.content if isinstance(row.content, dict) else {}
    return next((READERS[name] for name in READERS if name in fields), None)


def _rows(path: pathlib.Path, unreadable: OnProblem) -> list[Row]:
    """The rows of a file: lines, an array, or an object of objects."""
    name, content = file_label(path, KIND), read_bytes(path, KIND)
    if path.suffix.lower() == ".jsonl":
        return _lines(name, content, unreadable)
    try:
        whole = parse_json(decode_utf8(name, content), name)
    except ValueError:
        if any(map(_is_object, content.split(b"\n"))):
            return _lines(name, content, unreadable)
        raise
    if isinstance(whole, list):
        return [Row(f"{name}, row {number}", row) for number, row in enumerate(whole, 1)]
    check_kind(whole, dict, name)
    alone = Row(name, whole)
    if _reader(alone) is not None:
        return [alone]
    return [Row(f"{name}, paper {key!r}", row, key) for key, row in whole.items()]


def _lines(name: str, content: bytes, unreadable: OnProblem) -> list[Row]:
    return [Row(where, row) for _, where, row in read_rows(name, content, unreadable)]


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(parse_json(decode_utf8("line", line), "line"), dict)
    except ValueError:
        return False
