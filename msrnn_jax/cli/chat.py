"""`msrnn chat`: a conversation in a state of fixed size."""

import io
import os
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msrnn_jax.cli.errors import in_words, plain_errors
from msrnn_jax.cli.interrupts import raise_on_interrupt
from msrnn_jax.cli.loading import open_model, read_policy
from msrnn_jax.cli.options import Budget, Checkpoint, Dtype, MinP, PolicyText, Positions, Seed, Temperature, TopK, TopP
from msrnn_jax.cli.waiting import after_waiting, waiting

if TYPE_CHECKING:
    from msrnn_jax.generation.conversation import ChatModel, Conversation

HELP = """\
/save FILE             write the conversation's state to a file
/load FILE             go on from a file
/fork NAME             remember this point of the conversation
/back NAME             return to it; the same words get the same answer there
/policy TEXT [BUDGET]  forget in another way from now on (by layer cannot follow by head)
/read FILE             send a text file as a message
/state                 what is remembered
/reset                 begin anew
/help, /quit           this list; leave (so does ctrl-D)
Ctrl-C stops an answer; what was said of it so far stays in the conversation."""


@plain_errors
def chat(
    checkpoint: Checkpoint,
    policy: PolicyText = "tova",
    budget: Budget = 256,
    system: Annotated[str | None, typer.Option(help="System message: what the model is told first.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="The most tokens an answer gets.")] = 512,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    seed: Seed = 0,
    positions: Positions = "absolute",
    dtype: Dtype = None,
) -> None:
    """Talks, for as long as you like: the state is of fixed size. /help lists what can be done with it.

    Example: msrnn chat checkpoints/smollm2-135m --policy tova --budget 256
    """
    from msrnn_jax.checkpoint.layout import read_config
    from msrnn_jax.generation.conversation import begin_conversation
    from msrnn_jax.generation.sampling import make_sampler
    from msrnn_jax.recurrence.checks import MAX_BUDGET, check_int

    sampler = make_sampler(temperature, top_k, top_p, min_p)
    check_int("max_new_tokens", max_new_tokens, 1, MAX_BUDGET)
    chosen = read_policy(policy, read_config(checkpoint, dtype=dtype))
    with waiting("loading the model"):
        model = open_model(checkpoint, dtype)
    model.tokenizer.chat([{"role": "user", "content": "Hello"}])  # refuses now what it would refuse later
    conversation = begin_conversation(model, chosen, budget, positions=positions)
    settings = {"sampler": sampler, "seed": seed, "max_new_tokens": max_new_tokens, "system": system}
    if sys.stdin is None:
        raise ValueError("standard input is closed")
    if isinstance(sys.stdin, io.TextIOWrapper):
        # A bad line is refused, and the next one read.
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    raise_on_interrupt()  # from here on ctrl-C stops answers
    Talk(model, conversation, settings).run()


class Talk:
    """Reads lines and does what they say."""

    def __init__(self, model: "ChatModel", conversation: "Conversation", settings: dict[str, Any]):
        self.model, self.empty, self.settings = model, conversation, settings
        self.conversation = conversation
        self.forks: dict[str, Conversation] = {}
        self.interactive = sys.stdin.isatty()
        self.failed = False

    def run(self) -> None:
        if self.interactive:
            import readline  # noqa: F401, gives input() its history and editing

            typer.echo(f"{self._about()}. /help lists commands, ctrl-D leaves.")
        for line in self._lines():
            try:
                if line == "/quit":
                    break
                self._do(line)
            except BrokenPipeError:  # nobody reads on
                raise
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                typer.echo("\n(stopped)")
            except Exception as error:
                line = in_words(error)
                if line is None:
                    raise
                typer.echo(f"error: {line}", err=True)
                self.failed = True
        if self.failed and not self.interactive:  # a script must learn of it
            raise typer.Exit(2)

    def _lines(self) -> Iterator[str]:
        while True:
            try:
                line = input("> " if self.interactive else "").strip()
            except EOFError:
                if self.interactive:
                    typer.echo()
                return
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                typer.echo("\n(ctrl-D or /quit leaves)")
                continue
            if line:
                yield line

    def _do(self, line: str) -> None:
        from msrnn_jax.generation.conversation import change_policy, load_conversation, save_conversation
        from msrnn_jax.io.files import decode_utf8
        from msrnn_jax.text.documents import read_text

        line = decode_utf8("the line", line.encode("utf-8", "surrogateescape"))
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if not name.startswith("/"):
            return self._answer(line)
        if name in ("/save", "/load", "/fork", "/back", "/policy", "/read") and not rest:
            raise ValueError(f"{name} needs an argument; /help lists commands")
        match name:
            case "/help":
                return typer.echo(HELP)
            case "/state":
                pass
            case "/reset":
                self.conversation = self.empty
            case "/save":
                save_conversation(rest, self.model, self.conversation)
            case "/load":
                self.conversation = load_conversation(rest, self.model, self.conversation.policy)
            case "/fork":
                self.forks[rest] = self.conversation
            case "/back":
                if rest not in self.forks:
                    known = ", ".join(self.forks) or "none yet"
                    raise ValueError(f"fork {rest!r} is unknown; there are: {known}")
                self.conversation = self.forks[rest]
            case "/policy":
                text, _, number = rest.rpartition(" ")
                text, number = (text, int(number)) if text and number.isdecimal() else (rest, None)
                self.conversation = change_policy(
                    self.model.config, self.conversation, read_policy(text, self.model.config), number
                )
            case "/read":
                return self._answer(read_text(rest))
            case _:
                raise ValueError(f"command {name!r} is unknown; /help lists commands")
        typer.echo(f"({self._about()})")

    def _about(self) -> str:
        from msrnn_jax.generation.conversation import held

        state = self.conversation.state
        most = max(held(state))
        budgets = ", ".join(map(str, dict.fromkeys(self.conversation.budgets)))
        return f"{self.conversation.policy}, budget {budgets}: {int(state.t)} tokens seen, {most} held in each layer"

    def _answer(self, message: str) -> None:
        """Streams the answer from a thread, since the main one takes ctrl-C, also while a program compiles."""
        stop, done = threading.Event(), threading.Event()
        failed: list[BaseException] = []

        def work() -> None:
            from msrnn_jax.generation.conversation import answer

            try:
                answers = answer(self.model, self.conversation, message, stopped=stop.is_set, **self.settings)
                for piece, conversation in after_waiting(answers, "reading"):
                    sys.stdout.write(piece)
                    sys.stdout.flush()
                    self.conversation = conversation
            except BaseException as error:
                failed.append(error)
            finally:
                done.set()  # an interrupted join() takes a thread that goes on for dead

        try:
            threading.Thread(target=work, daemon=True).start()  # ctrl-C may come while it waits for the thread
            while not done.wait(0.05):
                pass
        except KeyboardInterrupt:
            stop.set()
            try:
                while not done.wait(0.05):
                    pass
            except KeyboardInterrupt:  # at once: the thread may be inside a compiled program
                typer.echo("interrupted", err=True)
                os._exit(130)
        typer.echo()
        if failed:
            raise failed[0]
