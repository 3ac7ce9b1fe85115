"""SQuALITY: stories with questions that take a paragraph to answer (Wang et al., 2022, arXiv:2205.11465)."""

from experiments.understanding.documents import Document, Question, Row
from msrnn_jax.json_rows import field, filled, sound, text

TASK = "squality"


def read_story(row: Row) -> Document:
    """A story from a row of the published `dev.jsonl`; its questions are called passage/number.

    Raises:
      ValueError: for a row that is none.
    """
    where = row.where
    questions = field(row.content, "questions", list, where)
    metadata = field(row.content, "metadata", dict, where)
    passage = str(field(metadata, "passage_id", (str, int), f"{where}: field 'metadata'"))
    sound(passage, f"{where}: field 'passage_id'")
    made = []
    for number, question in enumerate(questions, 1):
        place = f"{where}, question {number}"
        name = f"{passage}/{field(question, 'question_number', int, place)}"
        responses = field(question, "responses", list, place)
        if not responses:
            raise ValueError(f"{place} has no responses; there must be at least one to compare with")
        references = []
        for index, response in enumerate(responses, 1):
            references.append(text(response, "response_text", f"{place}, response {index}"))
        made.append(Question(name, text(question, "question_text", place), tuple(references)))
    story = field(row.content, "document", str, where)
    return Document(TASK, passage, filled(story, f"{where}: field 'document'"), tuple(made))
