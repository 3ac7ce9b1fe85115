"""lm-evaluation-harness with the model `msrnn` and tasks of local files.

python -m msrnn_jax.lm_eval --model msrnn --model_args pretrained=checkpoints/smollm2-135m,policy=tova,budget=256
  --tasks msrnn_choices

All options are the harness's own. With an --include_path or a --config of your own, name our tasks by their files.
"""

import sys

from msrnn_jax.cli.errors import complain, in_words
from msrnn_jax.cli.interrupts import end_at_once
from msrnn_jax.lm_eval import TASKS

OPTION = "--include_path"
INSTEAD = (OPTION, "--config", "-C")  # which say where tasks are


def main() -> None:
    """Runs the harness's command line."""
    end_at_once()
    from lm_eval.__main__ import cli_evaluate

    is_given = any(word.split("=")[0] in INSTEAD for word in sys.argv)
    if len(sys.argv) > 2 and not is_given:
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
