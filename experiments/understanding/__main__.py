"""Questions on long texts against the multi-state size: the paper's Figures 4 and 5.

python -m experiments.understanding checkpoints/smollm2-135m --data path/to/squality --data path/to/qasper

SQuALITY asks for a paragraph on a story (ROUGE), QASPER for a phrase on a paper (F1). The text comes first, then the
question; the end of the text is cut off so that both fit into the context. `baseline` is the same model with the text
cut to a prompt as short as the budget; `full` remembers everything. Beside every answer stands how likely the model
finds those of people.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console

from experiments.common.console import show
from experiments.common.model import Model, open_model
from experiments.common.options import Budgets, Chat, Checkpoint, Dtype, Out, Policies, Preset, command_of, settings_of
from experiments.common.policies import policies_of
from experiments.common.study import complete
from experiments.understanding.data import read_data
from experiments.understanding.documents import Document, Question
from experiments.understanding.fields import check
from experiments.understanding.prompts import Asker
from experiments.understanding.tables import summarise, table
from experiments.understanding.tasks import TASKS
from experiments.understanding.units import Exam, Trunk, make_units, read_full
from msrnn_jax.cli.errors import plain_errors
from msrnn_jax.cli.options import MeshText
from msrnn_jax.io.journal import Line
from msrnn_jax.model.prefill import PROMPT_MODES, check_mode
from msrnn_jax.policies import parse_policy
from msrnn_jax.recurrence.checks import check_int

NAME = "understanding"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured on what.

    Attributes:
      tasks: squality, qasper; none for those that the data has.
      policies: full attention and the texts cut short are always beside them.
      modes: how prompts are read, see `prefill`.
      context: tokens of a prompt; None: the model's context, at most 4,096.
      max_new_tokens: of an answer; None: 256 for squality, 48 for qasper.
      chat: put prompts through the chat template; None: if there is one.
      documents: of each task, the first ones; 0 for all.
      questions: of each document; 0 for all; None: 1 for squality, all for qasper.
    """

    checkpoint: str = ""
    data: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    policies: tuple[str, ...] = ("window:sinks=4", "tova")
    budgets: tuple[int, ...] = (256, 512, 1024, 2048)
    modes: tuple[str, ...] = PROMPT_MODES
    context: int | None = None
    max_new_tokens: int | None = None
    chat: bool | None = None
    documents: int = 0
    questions: int | None = None
    dtype: str | None = None
    mesh: str | None = None


PRESETS = {"small": Settings(), "paper": Settings(questions=0)}


def run(settings: Settings, out: pathlib.Path, console: Console) -> list[Line]:
    """Measures what is missing, and returns all lines."""
    model = open_model(settings.checkpoint, settings.dtype, settings.mesh)
    context = check_int(
        "context", model.context if settings.context is None else settings.context, 2, model.config.max_length
    )
    chat = model.tokenizer.template is not None if settings.chat is None else settings.chat
    settings = dataclasses.replace(settings, context=context, chat=chat)
    _check(settings, model, context)
    documents = read_data(settings.data, settings.tasks, console)
    exams = _exams(settings, model, Asker(model.tokenizer, chat), documents, context)

    @functools.lru_cache(maxsize=1)
    def trunk(index: int) -> Trunk:
        return read_full(exams[index])

    units = [unit for index, exam in enumerate(exams) for unit in make_units(exam, functools.partial(trunk, index))]
    return complete(out, NAME, settings, model.about, units, console, check)


def _check(settings: Settings, model: Model, context: int) -> None:
    for name in settings.tasks:
        if name not in TASKS:
            raise ValueError(f"task is {name!r}; it must be one of {', '.join(TASKS)}")
    for mode in settings.modes:
        check_mode(mode)
    check_int("documents", settings.documents, 0)
    check_int("questions", settings.questions or 0, 0)
    most = model.config.max_length
    check_int("max_new_tokens", 1 if settings.max_new_tokens is None else settings.max_new_tokens, 1, most)
    policies_of(model.config, settings.policies, settings.budgets, context)


def _exams(settings: Settings, model: Model, asker: Asker, documents: Sequence[Document], context: int) -> list[Exam]:
    exams = []
    for name, task in TASKS.items():
        mine = [document for document in documents if document.task == name]
        wanted = task.questions if settings.questions is None else settings.questions
        for index, document in enumerate(mine[: settings.documents or len(mine)]):
            questions = _choose(document, wanted, index)
            for budget in settings.budgets:
                asker.check(document, questions, budget)
            exams.append(
                Exam(
                    model,
                    asker,
                    asker.ask(document, questions, context),
                    context,
                    task.max_new_tokens if settings.max_new_tokens is None else settings.max_new_tokens,
                    list(dict.fromkeys(map(parse_policy, settings.policies))),
                    settings.budgets,
                    settings.modes,
                )
            )
    return exams


def _choose(document: Document, count: int, index: int) -> list[Question]:
    """So many of a document's questions, others of the next: where one is asked, it is not always the first."""
    questions = document.questions
    count = min(count or len(questions), len(questions))
    places = sorted((index + number) % len(questions) for number in range(count))
    return [questions[place] for place in places]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=command_of(PRESETS), help=__doc__)
@plain_errors
def main(
    checkpoint: Checkpoint,
    data: Annotated[
        list[str] | None, typer.Option(help="SQuALITY's .jsonl or QASPER's .json, or folders of them; repeat it.")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="squality or qasper; repeat it. Default: what there is.")
    ] = None,
    preset: Preset = "small",
    policy: Policies = None,
    budget: Budgets = None,
    mode: Annotated[
        list[str] | None, typer.Option(help="How prompts are read: stepwise or oneshot; repeat it. Default: both.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens of a prompt. Default: the model's context, at most 4,096.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of an answer. Default: 256 for squality, 48 for qasper.")
    ] = None,
    chat: Chat = None,
    documents: Annotated[int | None, typer.Option(help="Take the first documents of each task; 0 for all.")] = None,
    questions: Annotated[int | None, typer.Option(help="Questions of each document; 0 for all.")] = None,
    dtype: Dtype = None,
    mesh: MeshText = None,
    out: Out = pathlib.Path("results/understanding.jsonl"),
) -> None:
    settings = settings_of(
        PRESETS,
        preset,
        checkpoint=checkpoint,
        data=data,
        tasks=task,
        policies=policy,
        budgets=budget,
        modes=mode,
        context=context,
        max_new_tokens=max_new_tokens,
        chat=chat,
        documents=documents,
        questions=questions,
        dtype=dtype,
        mesh=mesh,
    )
    lines = run(settings, out, Console(stderr=True))
    show(table(summarise(lines)))


if __name__ == "__main__":
    app()
