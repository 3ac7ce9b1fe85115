"""How far training has come: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.shown import say

EVERY = 30.0  # seconds between two lines

Meter = Callable[[int, float], None]  # called with a step that is done, from 1, and its loss


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
