"""SQuALITY and QASPER from files and folders; a bad row is refused with its place."""

import json
import pathlib
from collections.abc import Iterator, Sequence

from rich.console import Console

from experiments.shown import say
from experiments.understanding.documents import Document, Row
from experiments.understanding.qasper import read_paper
from experiments.understanding.squality import read_story
from msrnn_jax.json_rows import check, parse

SUFFIXES = (".json", ".jsonl")  # what is taken from a folder
READERS = {"questions": read_story, "qas": read_paper}  # by a field that only their rows have


def read_data(paths: Sequence[str], tasks: Sequence[str], console: Console) -> list[Document]:
    """Reads SQuALITY and QASPER; which of them a file holds is seen from its rows.

    Args:
      paths: files, or folders, of which every .json and .jsonl below is taken that holds either; of others a note is
        printed.
      tasks: the ones that are wanted; none for whatever there is.

    Raises:
      ValueError: for a path that cannot be read or holds neither, a bad row (naming file, line or row, and what is
        wrong with it), a question that comes twice, and a wanted task that is not there.
    """
    if not paths:
        raise ValueError("data is missing; name files or folders of SQuALITY or QASPER with --data")
    documents = [document for path in paths for document in _below(path, console)]
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


def _below(path: str, console: Console) -> Iterator[Document]:
    place = pathlib.Path(path)
    if not path or not place.exists():
        raise ValueError(f"data {path!r} does not exist")
    files = [place]
    if place.is_dir():
        files = sorted(file for file in place.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not files:
            raise ValueError(f"data folder {path!r} has no .json or .jsonl file in it")
    for file in files:
        rows = _rows(file)
        fields = {name for row in rows if isinstance(row.content, dict) for name in row.content}
        reader = next((READERS[name] for name in READERS if name in fields), None)
        if reader is None:
            what = f"{str(file)!r} holds neither SQuALITY (rows with 'questions') nor QASPER (rows with 'qas')"
            if file is place:
                raise ValueError(f"data file {what}")
            say(console, f"note: {what}, and is left out")
            continue
        for row in rows:
            yield reader(row)


def _rows(path: pathlib.Path) -> list[Row]:
    """The rows of a file: lines, an array, or an object of objects."""
    name = f"data file {str(path)!r}"
    try:
        text = path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8: {error.reason} at byte {error.start}") from error
    if path.suffix.lower() == ".jsonl" or _is_json(text.split("\n", 1)[0]):
        lines = [(f"{name}, line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        if len(lines) != 1:
            return [Row(where, parse(line, where)) for where, line in lines]
    whole = parse(text, name)
    if isinstance(whole, list):
        return [Row(f"{name}, row {number}", row) for number, row in enumerate(whole, 1)]
    check(whole, dict, name)
    if any(name in whole for name in READERS):
        return [Row(f"{name}, line 1", whole)]
    return [Row(f"{name}, paper {key!r}", row, key) for key, row in whole.items()]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
