"""A run of training from its first step, or from where it was kept, to a checkpoint."""

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import msrnn_jax as ms
from experiments.common.console import say
from experiments.common.origin import commit, hardware
from experiments.finetune.data import Plan, check_same, make_plan
from experiments.finetune.plot import plot_losses
from experiments.finetune.saving import KIND as KEEPING
from experiments.finetune.saving import about_kept, keep, read_kept
from experiments.finetune.settings import Settings
from experiments.finetune.training import Training, begin, empty_states, train
from msrnn_jax.checkpoint.layout import SETTINGS_FILE, SOURCE_FILE, TEMPLATE_FILE, TOKENIZER_FILE
from msrnn_jax.checkpoint.save import CHECKPOINT
from msrnn_jax.evaluation.plot import check_plot
from msrnn_jax.io.atomic import check_writable, write_text
from msrnn_jax.io.folders import check_and_recover, check_space
from msrnn_jax.io.journal import Journal, Line, open_journal, read_journal
from msrnn_jax.io.units import tree_bytes
from msrnn_jax.policies import Gate, Learned, init_gate, parse_policy, save_gate
from msrnn_jax.policies.by_keys.gate import read_gate

LOSSES, PICTURE, KEPT, MODEL = "losses.jsonl", "losses.png", "training", "model"
GATE = "gate.safetensors"  # instead of a model, where a gate is trained
KINDS = ("finetune run", "finetune step")
ABOUT = "finetune.json"  # in the checkpoint: how it was made
BESIDE = (TOKENIZER_FILE, SETTINGS_FILE, TEMPLATE_FILE, SOURCE_FILE)
EVERY = 30.0  # seconds between two lines
Meter = Callable[[int, float], None]  # called with a step that is done, from 1, and its loss


def run(settings: Settings, out: pathlib.Path, console: Console) -> list[Line]:
    """Trains, or goes on training, and writes the checkpoint; returns a line for every step.

    Args:
      out: a folder for losses.jsonl, losses.png, the checkpoint `model` and `training`, what a run that goes on needs;
        these two are replaced every `keep_every` steps.

    Raises:
      ValueError: for settings or data that cannot be used, for a folder of another run, and for a loss that is no
        number; then what was kept last stays.
    """
    plan = make_plan(settings, console)
    _check_out(out, settings)
    training, frozen = _begin(plan)
    check_space(out, tree_bytes(training) + tree_bytes(plan.params))
    with open_journal(out / LOSSES, KINDS) as journal:
        about, done = about_kept(out / KEPT), 0
        if about is not None:
            check_same(out / KEPT, about, plan.about)
            done = about["step"]
            training = read_kept(out / KEPT, training)
            say(console, f"finetune: going on after step {done} of {settings.steps}")
        _check_lines(out, journal, plan, done)
        _cut_back(out / LOSSES, journal, plan, done)
        try:
            training = _take_steps(plan, training, frozen, journal, out, console)
        finally:
            lines = _steps_of(journal.lines)
            _plot(out, plan, lines)
        if done == settings.steps:  # by a run that was killed before it had written this, perhaps
            _write(out, plan, training)
    return lines


def _check_out(out: pathlib.Path, settings: Settings) -> None:
    """Refuses to write over anything but what a run has written."""
    check_and_recover(out / MODEL, CHECKPOINT, overwrite=True)
    check_and_recover(out / KEPT, KEEPING, overwrite=True)
    check_plot(out / PICTURE)
    if settings.gate:
        check_writable("gate", out / GATE)
    if (out / MODEL).exists() and not (out / MODEL / ABOUT).is_file():
        raise ValueError(f"{str(out / MODEL)!r} was not written by finetune and is not replaced; choose another folder")
    if (out / MODEL).resolve() == pathlib.Path(settings.checkpoint).resolve():
        raise ValueError(f"{str(out / MODEL)!r} is the model that is to be trained; choose another folder")


def _check_lines(out: pathlib.Path, journal: Journal, plan: Plan, done: int) -> None:
    """Refuses losses of another run, and those of one whose training is gone."""
    for line in journal.lines if _steps_of(journal.lines) else ():
        if line["kind"] == KINDS[0]:
            check_same(out / LOSSES, line, plan.about)
    made = out / (GATE if plan.settings.gate else MODEL)
    if not done and made.exists():  # which is written when all has been kept
        raise ValueError(
            f"{str(made)!r} was trained, but {str(out / KEPT)!r}, from which it could go on, is gone; "
            "remove the folder to begin anew, or choose another"
        )


def _cut_back(path: pathlib.Path, journal: Journal, plan: Plan, done: int) -> None:
    """Drops the lines of steps that were not kept, and those will come again; says in the file what is asked now."""
    steps = _steps_of(journal.lines)
    if [line["step"] for line in steps[:done]] != list(range(1, done + 1)):
        raise ValueError(f"{str(path)!r} lacks losses of the {done} steps that were kept; choose another folder")
    header = {"kind": KINDS[0], **plan.about, "hardware": hardware(), "commit": commit()}
    header["places"] = {"checkpoint": plan.settings.checkpoint, "data": list(plan.settings.data)}
    header["after_step"] = done
    earlier = [line for line in journal.lines if line["kind"] == KINDS[0] and line.get("after_step", 0) < done]
    lines = [*earlier, header, *steps[:done]]
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    journal.lines = lines


def _begin(plan: Plan) -> tuple[Training, ms.Params | None]:
    """Training before its first step, and weights that stay as they are, if any are needed."""
    settings, method = plan.settings, plan.method
    key = jax.random.key(settings.seed)
    adapters = None
    if settings.lora:
        adapters = ms.init_adapters(method.config, settings.lora, key, weights=settings.lora_weights, dtype="float32")
    frozen = None
    if settings.lora or settings.distill or settings.gate:  # a copy, since what is trained is given away at every step
        frozen = jax.tree.map(lambda leaf: jnp.array(leaf, settings.compute, copy=True), plan.params)
    trained = plan.params if adapters is None else adapters
    if settings.gate:
        trained = _first_gate(plan, key)
    training = begin(method, trained, jax.random.key_data(key), settings.batch)
    rows = plan.places.rows((training.states, training.teachers))
    placed = plan.places.whole(training._replace(states=None, teachers=None))
    return placed._replace(states=rows[0], teachers=rows[1]), plan.places.whole(frozen)


def _first_gate(plan: Plan, key: jax.Array) -> Gate:
    settings, config = plan.settings, plan.method.config
    if settings.start:
        return read_gate(settings.start)[0]
    return init_gate(config, key, width=settings.gate_width, lifetime=settings.budget, hidden=settings.gate_hidden)


def _take_steps(
    plan: Plan,
    training: Training,
    frozen: ms.Params | None,
    journal: Journal,
    out: pathlib.Path,
    console: Console,
) -> Training:
    """Takes every step that is missing, writes down what it says, and keeps all now and then."""
    settings, done = plan.settings, int(training.step)
    with meter(console, done, settings.steps, settings.batch * settings.segment) as update:
        for step in range(done, settings.steps):
            reading = plan.order.at(step)
            if reading.begins:
                states, teachers = plan.places.rows(empty_states(plan.method, settings.batch))
                training = training._replace(states=states, teachers=teachers)
            training, told = train(plan.method, training, frozen, plan.places.rows(jnp.asarray(reading.tokens)))
            numbers: dict[str, float] = {name: float(value) for name, value in told._asdict().items()}
            wrong = [name for name, value in numbers.items() if not math.isfinite(value)]
            if wrong:
                raise ValueError(
                    f"step {step + 1}: the {wrong[0]} is {numbers[wrong[0]]}; training stops, and what was kept stays"
                )
            line = {"kind": KINDS[1], "step": step + 1, **numbers, "learning_rate": plan.method.descent.rate(step)}
            journal.append([line])
            update(step + 1, numbers["loss"])
            if (step + 1) % settings.keep_every == 0 or step + 1 == settings.steps:
                keep(out / KEPT, training, plan.about)
                _write(out, plan, training)
                _plot(out, plan, _steps_of(journal.lines))
    return training


def read_losses(out: pathlib.Path) -> list[Line]:
    """A line for every step that a run has taken.

    Raises:
      ValueError: for a folder without losses.
    """
    if not (out / LOSSES).is_file():
        raise ValueError(f"run {str(out)!r} has no {LOSSES}; name the folder of a run")
    return _steps_of(read_journal(out / LOSSES, KINDS))


def _steps_of(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line["kind"] == KINDS[1]]


def _plot(out: pathlib.Path, plan: Plan, lines: list[Line]) -> None:
    if lines:
        settings = plan.settings
        plot_losses(out / PICTURE, lines, _title(settings), settings.length // settings.segment)


def _write(out: pathlib.Path, plan: Plan, training: Training) -> None:
    """What was trained."""
    if plan.settings.gate:
        policy = plan.method.policy
        assert isinstance(policy, Learned)
        about = {**plan.about, "steps_done": int(training.step)}
        save_gate(out / GATE, jax.device_get(training.trained), ageing=policy.ageing, finetune=about)
    else:
        _write_model(out / MODEL, plan, training)


def _write_model(path: pathlib.Path, plan: Plan, training: Training) -> None:
    """The checkpoint, in float32, with the files of the one that it comes from."""
    config = plan.method.config.replace(dtype="float32")
    if plan.settings.lora:
        params = ms.attach_adapters(config, plan.params, training.trained)
    else:
        params = training.trained
    if plan.settings.merge:
        params = ms.merge_adapters(params)
    source = pathlib.Path(plan.settings.checkpoint)
    files = {name: (source / name).read_text(encoding="utf-8") for name in BESIDE if (source / name).is_file()}
    files[ABOUT] = json.dumps({**plan.about, "steps_done": int(training.step)}, indent=2) + "\n"
    ms.save(path, config, params, files=files, overwrite=True)


def read_about(model: pathlib.Path) -> Line:
    """How a checkpoint was trained: `steps` that were asked for, `steps_done`, and hashes of model and data.

    Raises:
      ValueError: for one that no run has written.
    """
    try:
        found = json.loads((model / ABOUT).read_text(encoding="utf-8"))
        taken = {"steps": found["settings"]["steps"], "steps_done": found["steps_done"]}
        return {**taken, **{name: found[name] for name in ("model_sha256", "data_sha256")}}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{str(model)!r} was not written by finetune; name the folder of a run") from None


def _title(settings: Settings) -> str:
    what = f"LoRA {settings.lora}" if settings.lora else "all weights"
    what = f"gate, {settings.gate}" if settings.gate else what
    policy = parse_policy(settings.policy)
    return f"{policy}, budget {settings.budget}: {what}" if policy.forgets else f"{policy}: {what}"


@contextlib.contextmanager
def meter(console: Console, done: int, steps: int, tokens: int) -> Iterator[Meter]:
    """Shows the step, its loss, tokens a second and the time that is left.

    Args:
      done: steps of an earlier run.
      tokens: of every step.
    """
    begun = told = 0.0
    columns = (TextColumn("finetune: step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("compiling", total=steps, completed=done)

        def update(step: int, loss: float) -> None:
            nonlocal begun, told
            now = time.monotonic()
            text, left = f"loss {loss:.4f}", ""
            if step == done + 1:  # it compiles the program, for minutes perhaps
                begun = now
                bar.reset(task, total=steps, completed=step)
            else:
                each = (now - begun) / (step - done - 1)
                text, left = f"{text}, {tokens / each:,.0f} tokens/s", f", {each * (steps - step):,.0f} s left"
            bar.update(task, completed=step, description=text)
            if not console.is_terminal and (now - told >= EVERY or step == steps):
                told = now
                say(console, f"finetune: step {step} of {steps}, {text}{left}")

        yield update
