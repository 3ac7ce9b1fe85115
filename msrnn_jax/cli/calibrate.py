"""`msrnn calibrate`: mean queries of a model, for the policy triattention."""

from typing import Annotated

import typer

from msrnn_jax.cli.errors import plain_errors
from msrnn_jax.cli.options import Checkpoint, Dtype
from msrnn_jax.cli.waiting import waiting


@plain_errors
def calibrate(
    checkpoint: Checkpoint,
    out: Annotated[str, typer.Argument(help="File to write, such as queries.safetensors.", metavar="OUT")],
    text: Annotated[
        list[str] | None, typer.Option(help="A file or folder of text; repeat it. Default: Python's help.")
    ] = None,
    segment: Annotated[int, typer.Option(help="Tokens of a segment, read with full attention.")] = 1024,
    segments: Annotated[int, typer.Option(help="How many segments to read; 0 for all.")] = 16,
    dtype: Dtype = None,
) -> None:
    """Measures the mean queries of every layer and head on a text, for --policy triattention:calibration=OUT.

    Example: msrnn calibrate checkpoints/smollm2-135m queries.safetensors --text book.txt
    """
    from msrnn_jax.evaluation.calibration import calibrate as measure
    from msrnn_jax.evaluation.calibration import save_calibration
    from msrnn_jax.evaluation.settings import Settings, read_inputs
    from msrnn_jax.io.atomic import check_writable
    from msrnn_jax.io.environment import keep_compilations

    check_writable("calibration", out)
    keep_compilations()
    settings = Settings(checkpoint, tuple(text or ()), segment=segment, segments=segments, dtype=dtype)
    with waiting("loading the model"):
        inputs = read_inputs(settings)
    for problem in inputs.unreadable:
        typer.echo(problem, err=True)
    whole = inputs.segments.tokens[inputs.segments.lengths == segment]
    with waiting("reading"):
        found = measure(inputs.config, inputs.params, whole)
    about = {"text_sha256": inputs.text_sha256, "segment": str(segment)}
    save_calibration(out, inputs.config, inputs.params, found, **about)
    typer.echo(f"{out}: mean queries of {int(found['tokens'])} tokens")
