"""Long stories, TOVA against the full model: the paper's Figure 6.

python -m experiments.generation checkpoints/smollm2-135m

Every story is written once with everything remembered and once under every budget, from the same draws, so that texts
differ only by what was forgotten. Each is then read by the full model. --judge has a language model behind an
OpenAI-compatible endpoint compare the two, twice, each first once.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console

from experiments.common.console import left_out_note, show
from experiments.common.model import Model, open_model
from experiments.common.options import (
    Budgets,
    Chat,
    Checkpoint,
    Dtype,
    Mode,
    Out,
    Policies,
    Preset,
    command_of,
    settings_of,
)
from experiments.common.policies import named, policies_of
from experiments.common.study import Key, Unit, complete
from experiments.generation.endpoint import Judge
from experiments.generation.fields import check
from experiments.generation.judging import check_judge, judge_stories
from experiments.generation.prompts import STORY, Prompt, Row, make_prompts, read_rows, without_template
from experiments.generation.tables import judge_table, summarise, summarise_judge, table
from experiments.generation.writing import Manner, Story, distinct, foreseen, same_until, shape_of, write_stories
from msrnn_jax.cli.errors import plain_errors
from msrnn_jax.cli.options import MeshText
from msrnn_jax.generation.sampling import make_sampler
from msrnn_jax.io.files import OnProblem, refuse
from msrnn_jax.io.journal import Line
from msrnn_jax.model.prefill import check_mode
from msrnn_jax.policies import Full, Policy, parse_policy
from msrnn_jax.recurrence.checks import check_int

NAME = "generation"
MOST = 100_000  # stories
NGRAMS = (1, 2, 3, 4)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is written, and how.

    Attributes:
      data: a .jsonl of prompts; None: the story instruction.
      field: of its rows, which holds the prompt; None: `prompt` or `turns`.
      stories: one for each of the first prompts; where there are fewer prompts, several of each.
      policies: the full model is always beside them.
      max_new_tokens: of a story, at most; 0: as many as the context has room for.
      context: tokens of prompt and story together, at most; None: the model's, at most 4,096.
      temperature: 0 takes the likeliest token always.
      top_p: 1 draws from all tokens.
      chat: whether prompts go through the model's chat template; None: if it has one.
      mode: how prompts are read, stepwise or oneshot.
      batch: stories that are written at once.
    """

    checkpoint: str = ""
    data: str | None = None
    field: str | None = None
    stories: int = 20
    policies: tuple[str, ...] = ("tova",)
    budgets: tuple[int, ...] = (256, 512, 1024)
    max_new_tokens: int = 1024
    context: int | None = None
    temperature: float = 1.0
    top_p: float = 0.9
    seed: int = 0
    chat: bool | None = None
    mode: str = "stepwise"
    batch: int = 10
    dtype: str | None = None
    mesh: str | None = None


PRESETS = {"small": Settings(), "paper": Settings(stories=100, max_new_tokens=0)}


def run(settings: Settings, out: pathlib.Path, console: Console) -> list[Line]:
    """Writes the stories that are missing, and returns all lines."""
    model = open_model(settings.checkpoint, settings.dtype, settings.mesh)
    chat = model.tokenizer.template is not None if settings.chat is None else settings.chat
    context = model.context if settings.context is None else settings.context
    settings = dataclasses.replace(settings, chat=chat, context=context)
    manner, prompts = _prepare(settings, model, context, left_out_note(console))
    units = [
        unit
        for start in range(0, len(prompts), manner.shape.rows)
        for unit in _units(settings, model, manner, prompts[start : start + manner.shape.rows])
    ]
    return complete(out, NAME, settings, model.about, units, console, check)


def _prepare(settings: Settings, model: Model, context: int, unreadable: OnProblem) -> tuple[Manner, list[Prompt]]:
    """Checks everything before any work."""
    check_int("context", context, 2, model.config.max_length)
    check_int("max_new_tokens", settings.max_new_tokens, 0, context - 1)
    check_int("stories", settings.stories, 1, MOST)
    check_int("batch", settings.batch, 1)
    check_int("seed", settings.seed, 0, 2**32 - 1)
    check_mode(settings.mode)
    sampler = make_sampler(settings.temperature, top_p=None if settings.top_p == 1 else settings.top_p)
    policies_of(model.config, settings.policies, settings.budgets, context)
    most = context - (settings.max_new_tokens or 1)
    if settings.data is None:
        rows, unreadable = [Row("story", "the story instruction", STORY)], refuse
        if settings.field is not None:
            raise ValueError(f"field is {settings.field!r}, but there is no data whose rows could have it")
    else:
        rows = read_rows(settings.data, settings.field, unreadable)
    prompts = make_prompts(rows, settings.stories, functools.partial(_encode, settings, model), most, unreadable)
    if not sampler.random and any(prompt.draw for prompt in prompts):
        raise ValueError(
            f"temperature is 0, which writes one story of a prompt, but {settings.stories} are asked for and there are "
            f"{sum(not prompt.draw for prompt in prompts)} prompts"
        )
    shape = shape_of(prompts, settings.batch, settings.max_new_tokens, context)
    return Manner(shape, context, sampler, settings.seed, settings.mode), prompts


def _encode(settings: Settings, model: Model, text: str) -> list[int]:
    if settings.chat:
        return model.tokenizer.chat([{"role": "user", "content": text}])
    return model.tokenizer.encode(without_template(text) if settings.data is None else text)


def _units(settings: Settings, model: Model, manner: Manner, prompts: Sequence[Prompt]) -> Iterator[Unit]:
    """The stories of one batch of prompts, the full model's first, with which the others are compared."""

    @functools.cache
    def full() -> list[Story]:
        return write_stories(model, Full(), None, prompts, manner)

    def unit(policy: Policy, budget: int, write: Callable[[], list[Story]]) -> Unit:
        setting = _setting(settings, manner, policy, budget)
        keys = [Key(setting, prompt.document, prompt.sha256) for prompt in prompts]

        def work() -> list[dict[str, Any]]:
            trios = zip(prompts, write(), full(), strict=True)
            return [_numbers(model, manner, prompt, story, whole) for prompt, story, whole in trios]

        return Unit(keys, work)

    yield unit(Full(), manner.context, full)
    for text in settings.policies:
        policy = parse_policy(text)
        for budget in settings.budgets:
            yield unit(policy, budget, functools.partial(write_stories, model, policy, budget, prompts, manner))


def _setting(settings: Settings, manner: Manner, policy: Policy, budget: int) -> dict[str, Any]:
    same = ("max_new_tokens", "context", "temperature", "top_p", "seed", "chat", "mode")
    shape = {"batch": manner.shape.rows, "width": manner.shape.width, "new": manner.shape.new}  # so of the rounding
    return {**named(policy), "budget": budget, **{name: getattr(settings, name) for name in same}, **shape}


def _numbers(model: Model, manner: Manner, prompt: Prompt, story: Story, full: Story) -> dict[str, Any]:
    stop = model.tokenizer.stop
    ended = int(story[-1]) in stop
    words = story[:-1] if ended else story
    return {
        "prompt_tokens": len(prompt.tokens),
        "tokens": len(story),
        "ended": ended,
        **{f"distinct_{size}": distinct(words, size) for size in NGRAMS},
        **foreseen(model, prompt.tokens, story, manner.shape.room),
        "same_until": same_until(story, full),
        "prompt": prompt.text,
        "text": model.tokenizer.decode(words),
    }


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=command_of(PRESETS), help=__doc__)
@plain_errors
def main(
    checkpoint: Checkpoint,
    data: Annotated[
        str | None, typer.Option(help="A .jsonl of prompts. Default: one instruction to tell a story.")
    ] = None,
    field: Annotated[
        str | None, typer.Option(help="Field of a row that holds its prompt. Default: prompt or turns.")
    ] = None,
    preset: Preset = "small",
    stories: Annotated[int | None, typer.Option(help="Stories, one for each of the first prompts.")] = None,
    policy: Policies = None,
    budget: Budgets = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of a story; 0: what fits the context.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens of prompt and story, at most. Default: the model's, at most 4,096.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0 takes the likeliest token always.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the likeliest tokens that have this together.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all draws.")] = None,
    chat: Chat = None,
    mode: Mode = None,
    batch: Annotated[int | None, typer.Option(help="Stories that are written at once.")] = None,
    dtype: Dtype = None,
    mesh: MeshText = None,
    judge: Annotated[str | None, typer.Option(help="An endpoint, such as https://api.openai.com/v1.")] = None,
    judge_model: Annotated[str | None, typer.Option(help="The name of the model there.")] = None,
    judge_key_env: Annotated[
        str | None, typer.Option(help="Variable that holds the key. Default: OPENAI_API_KEY, if it is set.")
    ] = None,
    judge_timeout: Annotated[float | None, typer.Option(help="Seconds to wait for an answer. Default: 60.")] = None,
    judge_tries: Annotated[int | None, typer.Option(help="Most tries of one question. Default: 5.")] = None,
    judge_out: Annotated[
        pathlib.Path | None, typer.Option(help="Judgements. Default: beside --out, its name with _judge.")
    ] = None,
    out: Out = pathlib.Path("results/generation.jsonl"),
) -> None:
    if temperature == 0 and top_p is None:
        top_p = 1.0  # the preset's goes with the preset's temperature
    settings = settings_of(
        PRESETS,
        preset,
        checkpoint=checkpoint,
        data=data,
        field=field,
        stories=stories,
        policies=policy,
        budgets=budget,
        max_new_tokens=max_new_tokens,
        context=context,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        chat=chat,
        mode=mode,
        batch=batch,
        dtype=dtype,
        mesh=mesh,
    )
    asked: dict[str, Any] = {"model": judge_model, "key_env": judge_key_env, "timeout": judge_timeout}
    asked |= {"tries": judge_tries, "out": judge_out}
    judging = _judge(judge, out, {name: value for name, value in asked.items() if value is not None})
    console = Console(stderr=True)
    lines = run(settings, out, console)
    show(table(summarise(lines)))
    if judging is not None:
        show(judge_table(summarise_judge(judge_stories(*judging, lines, console))))


def _judge(url: str | None, out: pathlib.Path, given: dict[str, Any]) -> tuple[Judge, pathlib.Path] | None:
    """The judge that is asked for and the file of its judgements, checked before any story is written."""
    if url is None:
        if given:
            raise ValueError(f"judge_{next(iter(given))} is given, but no judge")
        return None
    if "model" not in given:
        raise ValueError("judge_model is missing; the judge's endpoint must be told which model to ask")
    place = given.pop("out", out.with_name(f"{out.stem}_judge.jsonl"))
    judge = Judge(url, **given)
    check_judge(judge, place, out)
    return judge, place


if __name__ == "__main__":
    app()
