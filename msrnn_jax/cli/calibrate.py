"""`msrnn calibrate`: mean queries of a model, for the policy triattention."""

from typing import Annotated

import typer

from msrnn_jax.cli.errors import plain_errors
from msrnn_jax.cli.loading import open_model
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
    from msrnn_jax.evaluation.segments import check_size, cut_documents
    from msrnn_jax.io.atomic import check_writable
    from msrnn_jax.io.provenance import text_hash
    from msrnn_jax.recurrence.checks import check_int
    from msrnn_jax.text.documents import read_documents

    check_size(segment, 2)
    check_int("segments", segments, 0)
    check_writable("calibration", out)
    documents = read_documents(tuple(text or ()), "text", typer.echo)
    with waiting("loading the model"):
        model = open_model(checkpoint, dtype)
    cut = cut_documents(model.tokenizer, documents, segment, segments)
    whole = cut.tokens[cut.lengths == segment]
    with waiting("reading"):
        found = measure(model.config, model.params, whole)
    digest = text_hash("\0".join(document.text for document in documents))
    save_calibration(out, model.config, model.params, found, text_sha256=digest, segment=str(segment))
    typer.echo(f"{out}: mean queries of {int(found['tokens'])} tokens")
