"""`msrnn perplexity`: perplexity of texts for every policy and budget."""

import contextlib
import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from msrnn_jax.cli.errors import plain_errors
from msrnn_jax.cli.loading import read_policy
from msrnn_jax.cli.options import Checkpoint, Dtype, Json, MeshText, PolicyTexts, Positions, budgets_option

TEXT_HELP = (
    "UTF-8 file, .jsonl with a document a row, folder of both, or - for stdin; repeat it. Default: Python's help."
)
FIDELITY_HELP = "Also compare every prediction with the full model's: KL divergence and top-1 agreement."
SEGMENT_HELP = (
    "Tokens per segment; each starts from an empty state, and its first token is context only. BOS is where the "
    "tokenizer puts it: nowhere, or at the start of a document."
)
BOS_HELP = "Put BOS before every segment, whose tokens are then all predicted."
SHOWN = 5  # documents that cannot be read
OUT_HELP = (
    "JSON lines, one for each policy, budget and segment; give the file again to continue a run that was stopped."
)


@plain_errors
def perplexity(
    checkpoint: Checkpoint,
    text: Annotated[list[str] | None, typer.Option(help=TEXT_HELP)] = None,
    field: Annotated[str, typer.Option(help="Field of a .jsonl row that holds its text.")] = "text",
    policy: PolicyTexts = None,
    budget: Annotated[list[int] | None, budgets_option("Repeat it. Default: 256. full holds all.")] = None,
    segment: Annotated[int, typer.Option(help=SEGMENT_HELP)] = 4096,
    segments: Annotated[int, typer.Option(help="Use the first N segments; 0 uses all.")] = 0,
    bos_every_segment: Annotated[bool, typer.Option("--bos-every-segment", help=BOS_HELP)] = False,
    batch: Annotated[str, typer.Option(help="Rows (segment, budget) run at once, or auto: as many as fit.")] = "auto",
    fidelity: Annotated[bool, typer.Option("--fidelity", help=FIDELITY_HELP)] = False,
    positions: Positions = "absolute",
    dtype: Dtype = None,
    mesh: MeshText = None,
    out: Annotated[str | None, typer.Option(help=OUT_HELP, metavar="FILE.jsonl")] = None,
    plot: Annotated[str | None, typer.Option(help="Draw perplexity against budget.", metavar="FILE.png")] = None,
    as_json: Json = False,
) -> None:
    """Measures perplexity for every policy and budget; by default those of full attention and tova.

    Example: msrnn perplexity checkpoints/smollm2-135m --text book.txt --policy full --policy tova --budget 64
    --budget 256 --out results/book.jsonl --plot results/book.png
    """
    from rich.console import Console

    from msrnn_jax.checkpoint.layout import read_config
    from msrnn_jax.devices import processes
    from msrnn_jax.evaluation.perplexity import measure
    from msrnn_jax.evaluation.plot import check_plot, plot_perplexity
    from msrnn_jax.evaluation.records import RUN, SEGMENT
    from msrnn_jax.evaluation.settings import Settings, read_inputs
    from msrnn_jax.io.environment import keep_compilations
    from msrnn_jax.io.journal import open_journal

    processes.join_processes()
    keep_compilations()
    config = read_config(checkpoint, dtype=dtype)
    for one in policy or ():
        read_policy(one, config)
    settings = Settings(
        checkpoint=checkpoint,
        texts=tuple(text or ()),
        field=field,
        policies=tuple(policy or Settings.policies),
        budgets=tuple(budget or Settings.budgets),
        segment=segment,
        segments=segments,
        bos_every_segment=bos_every_segment,
        batch=_rows(batch),
        positions=positions,
        dtype=dtype,
        fidelity=fidelity,
        mesh=mesh,
    )
    first = processes.is_first()
    if plot is not None and first:
        check_plot(plot)
    console = Console(stderr=True, quiet=not first)

    def note(line: str) -> None:
        console.print(f"note: {line}", soft_wrap=True, markup=False, highlight=False)

    with open_journal(out if first else None, (RUN, SEGMENT)) as journal:
        journal.lines = processes.from_first(journal.lines)
        inputs = read_inputs(settings)
        cut = inputs.segments
        for problem in inputs.unreadable[:SHOWN]:
            note(f"left out: {problem}")
        if len(inputs.unreadable) > SHOWN:
            note(f"left out, too: {len(inputs.unreadable) - SHOWN} more that cannot be read")
        if cut.skipped:
            note(f"documents with nothing to predict, which are skipped: {cut.skipped}")
        results = []
        with _progress(console) as report:
            for result in measure(settings, inputs, journal, report=report, note=note):
                results.append(result)
                if as_json and first:
                    typer.echo(json.dumps(result))
    if not first:
        return
    if plot is not None:
        name = checkpoint.rstrip("/").split("/")[-1]
        plot_perplexity(plot, results, f"{name}, {cut.predicted:,} tokens")
    if not as_json:
        _print_table(results)
        after = "" if cut.bos is None else ", each after BOS"
        counts = f"{cut.predicted} tokens predicted, segments: {len(cut.sources)}{after}, documents: {cut.documents}"
        typer.echo(f"{counts}, text: {inputs.text_sha256}")
    if all(result["perplexity"] is None for result in results):
        raise ValueError("every segment came to no number (nan, inf); the model must compute numbers")


def _rows(batch: str) -> int | None:
    if batch == "auto":
        return None
    try:
        number = int(batch)
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError(f"batch is {batch}; it must be a whole number of at least 1, or auto")
    return number


@contextlib.contextmanager
def _progress(console: Any) -> Iterator[Any]:
    """A bar on stderr where that is a terminal; yields what `measure` reports to."""
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("rows"),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda now: bar.update(task, description=now.doing, completed=now.done, total=now.rows)


def _print_table(results: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from msrnn_jax.text.display import decimals

    columns = {"perplexity": ("perplexity", 2, None), "nats per token": ("nll", 4, "stderr")}
    columns |= {"bits per byte": ("bits_per_byte", 4, None), "above full": ("above_full", 4, "above_full_stderr")}
    columns |= {"KL from full": ("kl", 4, "kl_stderr"), "top-1 agreement": ("agreement", 4, "agreement_stderr")}
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # nobody's window is too narrow for it
    plus_minus = "±" if console.encoding.startswith("utf") else "+-"
    columns = {title: what for title, what in columns.items() if what[0] in results[0]}
    table = Table("policy")
    for title in ("budget", *columns):
        table.add_column(title, justify="right", no_wrap=True)
    for result in results:
        cells = []
        for name, places, error in columns.values():
            cell = decimals(result[name], places)
            known = error and result[error] is not None
            cells.append(f"{cell} {plus_minus} {decimals(result[error], places)}" if known else cell)
        table.add_row(result["policy"], str(result["budget"]), *cells)
    console.print(table)
