"""SQuALITY: stories with questions that take a paragraph to answer (Wang et al., 2022, arXiv:2205.11465)."""

from typing import Any

from experiments.understanding.documents import Document, Question, Row
from msrnn_jax.io.files import OnProblem, skipping
from msrnn_jax.io.json_fields import check_filled, field, text_field

TASK = "squality"


def read_story(row: Row, unreadable: OnProblem) -> Document:
    """A story from a row of the published `dev.jsonl`; its questions are called passage/number.

    Args:
      unreadable: called with what is wrong with a question, which is then left out.

    Raises:
      ValueError: for a row that is no story.
    """
    where = row.where
    questions = field(row.content, "questions", list, where)
    metadata = field(row.content, "metadata", dict, where)
    passage = str(field(metadata, "passage_id", (str, int), f"{where}: field 'metadata'"))
    made = []
    for number, question in enumerate(questions, 1):
        with skipping(unreadable):
            made.append(_question(passage, question, f"{where}, question {number}"))
    story = field(row.content, "document", str, where)
    return Document(TASK, passage, check_filled(story, f"{where}: field 'document'"), tuple(made))


def _question(passage: str, question: Any, where: str) -> Question:
    name = f"{passage}/{field(question, 'question_number', int, where)}"
    responses = field(question, "responses", list, where)
    if not responses:
        raise ValueError(f"{where} has no responses; there must be at least one to compare with")
    references = []
    for index, response in enumerate(responses, 1):
        references.append(text_field(response, "response_text", f"{where}, response {index}"))
    return Question(name, text_field(question, "question_text", where), tuple(references))
