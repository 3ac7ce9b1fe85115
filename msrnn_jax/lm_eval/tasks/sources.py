"""Where the tasks beside this file take their questions: local files, named by the harness's --metadata.

The harness hands over all of --metadata and --model_args, of which each task takes what it knows.
"""

import pathlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

import datasets

from msrnn_jax.io.files import file_label, read_bytes, read_each, read_rows, refuse
from msrnn_jax.io.json_fields import field
from msrnn_jax.recurrence.checks import check_int
from msrnn_jax.text.documents import read_documents

CITIES = ("Lisbon", "Oslo", "Cairo", "Lima", "Kyoto", "Quito", "Dakar", "Riga", "Perth", "Havana", "Tunis", "Bergen")
EXAMPLES = pathlib.Path(__file__).with_name("choices.jsonl")


def read_books(texts: Any = None, characters: int | None = None, **others: Any) -> dict[str, Any]:
    """Whole texts, or their beginnings: rows with `text` and `name`."""
    del others
    most = None if characters is None else check_int("characters", characters, 1)
    documents = [(document.name, document.text[:most]) for document in read_documents(_paths(texts))]
    return _split({"name": name, "text": text} for name, text in documents if text.strip())


def hide_needles(
    texts: Any = None, words: int = 500, cases: int = 20, needle_seed: int = 0, **others: Any
) -> dict[str, Any]:
    """Stretches of texts with a fact in each, at depths from 0 to 1: rows with `text`, `question`, `value`, `depth`."""
    del others
    check_int("words", words, 1)
    check_int("cases", cases, 1)
    source = [word for document in read_documents(_paths(texts)) for word in document.text.split()]
    if len(source) < words:
        raise ValueError(f"texts have {len(source)} words; they must have at least {words}")
    draw, rows = random.Random(needle_seed), []
    for case in range(cases):
        city, value = draw.choice(CITIES), str(draw.randrange(10_000, 100_000))
        start, depth = draw.randrange(len(source) - words + 1), case / max(1, cases - 1)
        stretch, place = source[start : start + words], round(depth * words)
        question = f"The secret number of {city} is"
        text = " ".join([*stretch[:place], f"{question} {value}.", *stretch[place:]])
        rows.append({"text": text, "question": question, "value": value, "depth": depth})
    return _split(rows)


def read_choices(choices: Any = None, **others: Any) -> dict[str, Any]:
    """Rows with `question`, `choices`, `answer` and `context`, "" where there is none."""
    del others
    paths = _paths(choices) or [str(EXAMPLES)]
    return _split(read_each(paths, (".jsonl",), "file of questions", lambda path, _: _questions(path), refuse))


def _questions(path: str) -> Iterator[dict[str, Any]]:
    for _, where, row in read_rows(file_label(path), read_bytes(path), refuse):
        options = field(row, "choices", list, where)
        answer = field(row, "answer", int, where)
        if len(options) < 2 or not all(isinstance(option, str) and option for option in options):
            raise ValueError(f"{where}: choices is {options!r}; it must be a list of at least two texts")
        if not 0 <= answer < len(options):
            raise ValueError(f"{where}: answer is {answer}; it must be from 0 to {len(options) - 1}")
        context = row.get("context", "")
        yield {"question": field(row, "question", str, where), "choices": options, "answer": answer, "context": context}


def _paths(given: Any) -> list[str]:
    if given is None:
        return []
    return [str(path) for path in given] if isinstance(given, Sequence) and not isinstance(given, str) else [str(given)]


def _split(rows: Any) -> dict[str, Any]:
    return {"test": datasets.Dataset.from_list(list(rows))}
