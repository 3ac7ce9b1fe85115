"""lm-evaluation-harness with the model `msrnn` and the tasks msrnn_books, msrnn_choices and msrnn_needle.

python -m msrnn_jax.lm_eval --model_args pretrained=checkpoints/smollm2-135m,policy=tova,budget=256
  --tasks msrnn_choices

All options are the harness's own; --model is msrnn unless another is named. With an --include_path or a --config of
your own, name our tasks by their files.
"""

import sys

from msrnn_jax.cli.errors import complain, in_words
from msrnn_jax.cli.interrupts import end_at_once
from msrnn_jax.lm_eval import MISSING, TASKS

OPTION = "--include_path"
INSTEAD = (OPTION, "--config", "-C")  # which say where tasks are
MODEL = ("--model", "-m", "--config", "-C")


def main() -> None:
    """Runs the harness's command line."""
    end_at_once()
    try:
        from lm_eval.__main__ import cli_evaluate

        from msrnn_jax.lm_eval import MultiStateLM  # noqa: F401, which the harness then knows
    except ImportError as error:
        if error.name and not error.name.startswith("lm_eval"):
            raise
        complain(f"error: {MISSING}")
        sys.exit(2)

    given = {word.split("=")[0] for word in sys.argv[1:]}
    if not given or given & {"-h", "--help"}:
        print(__doc__)
    if "--model_args" in given and not given & {*MODEL}:
        sys.argv += ["--model", "msrnn"]
    if len(sys.argv) > 2 and not given & {*INSTEAD}:
        sys.argv += [OPTION, TASKS]
    try:
        cli_evaluate()
    except Exception as error:
        line = in_words(error)
        if line is None:
            raise
        complain(f"error: {line}")
        sys.exit(2)


if __name__ == "__main__":
    main()
