"""The model `msrnn` of lm-evaluation-harness: language models that read tasks through a bounded state.

`python -m msrnn_jax.lm_eval` is the harness's own command, with this model and the tasks of TASKS.
"""

import pathlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msrnn_jax.lm_eval.model import MultiStateLM

TASKS = str(pathlib.Path(__file__).with_name("tasks"))  # a folder for the harness's --include_path
MISSING = "lm_eval is not installed: pip install lm_eval"

__all__ = ["TASKS", "MultiStateLM"]


def __getattr__(name: str) -> Any:
    """Loads the model at its first use, so that the command can say in one line that the harness is missing."""
    if name != "MultiStateLM":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import lm_eval as _harness  # noqa: F401
    except ImportError as error:
        raise ImportError(MISSING) from error
    from msrnn_jax.lm_eval.model import MultiStateLM

    return MultiStateLM
