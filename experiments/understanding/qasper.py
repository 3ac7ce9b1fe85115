"""QASPER: papers with questions that take a phrase to answer (Dasigi et al., 2021, arXiv:2105.03011)."""

from typing import Any

from experiments.understanding.documents import Document, Question, Row
from msrnn_jax.io.files import OnProblem, skipping
from msrnn_jax.io.json_fields import check_filled, check_kind, field, text_field

TASK = "qasper"


def read_paper(row: Row, unreadable: OnProblem) -> Document:
    """A paper, as the authors publish it or as the `datasets` loader yields it, where tables are objects of lists.

    The text is title, abstract, and every section's name and paragraphs, with a blank line between any two.

    Args:
      unreadable: called with what is wrong with a question, which is then left out.

    Raises:
      ValueError: for a row that is no paper.
    """
    where, paper = row.where, row.content
    name = row.name if row.name is not None else text_field(paper, "id", where)
    parts = [field(paper, "title", str, where), field(paper, "abstract", str, where)]
    for number, section in enumerate(
        _table(field(paper, "full_text", (list, dict), where), f"{where}: 'full_text'"), 1
    ):
        place = f"{where}, section {number}"
        check_kind(section, dict, place)
        if section.get("section_name") is not None:
            parts.append(field(section, "section_name", str, place))
        for paragraph in field(section, "paragraphs", list, place):
            check_kind(paragraph, str, f"{place}, a paragraph")
            parts.append(paragraph)
    whole = "\n\n".join(part.strip() for part in parts if part.strip())
    questions = []
    for number, question in enumerate(_table(field(paper, "qas", (list, dict), where), f"{where}: 'qas'"), 1):
        with skipping(unreadable):
            questions.append(_question(question, f"{where}, question {number}"))
    return Document(TASK, name, check_filled(whole, f"{where}: the paper"), tuple(questions))


def _question(question: Any, where: str) -> Question:
    answers = _table(field(question, "answers", (list, dict), where), f"{where}: 'answers'")
    if not answers:
        raise ValueError(f"{where} has no answers; there must be at least one to compare with")
    references = [_reference(answer, f"{where}, answer {number}") for number, answer in enumerate(answers, 1)]
    return Question(
        text_field(question, "question_id", where), text_field(question, "question", where), tuple(references)
    )


def _reference(annotation: Any, where: str) -> str:
    """What the authors' evaluator compares with: of an annotation's four kinds of answer the first that is there."""
    answer = field(annotation, "answer", dict, where)
    if field(answer, "unanswerable", bool, where):
        return "Unanswerable"
    spans = field(answer, "extractive_spans", list, where)
    if spans:
        for span in spans:
            check_kind(span, str, f"{where}, a span")
        return check_filled(", ".join(spans), f"{where}: the spans")
    if field(answer, "free_form_answer", str, where).strip():
        return text_field(answer, "free_form_answer", where)
    if answer.get("yes_no") is None:
        raise ValueError(f"{where} says nothing; it must be unanswerable, spans, free-form, or yes or no")
    return "Yes" if field(answer, "yes_no", bool, where) else "No"


def _table(table: Any, where: str) -> list[Any]:
    """Rows of a table, which may be an object of columns."""
    if isinstance(table, list):
        return table
    for name, column in table.items():
        check_kind(column, list, f"{where}, column {name!r}")
    if len({len(column) for column in table.values()}) > 1:
        counts = ", ".join(f"{name!r} {len(column)}" for name, column in table.items())
        raise ValueError(f"{where} has columns of different lengths: {counts}")
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
