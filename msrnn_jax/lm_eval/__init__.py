"""The model `msrnn` of lm-evaluation-harness: language models that read tasks through a bounded state.

`python -m msrnn_jax.lm_eval` is the harness's own command, with this model and the tasks of TASKS.
"""

import pathlib

try:
    import lm_eval as _harness  # noqa: F401
except ImportError as error:
    raise ImportError("lm_eval is not installed; pip install 'msrnn_jax[lm-eval]'") from error

from msrnn_jax.lm_eval.model import MultiStateLM

TASKS = str(pathlib.Path(__file__).with_name("tasks"))  # a folder for the harness's --include_path

__all__ = ["TASKS", "MultiStateLM"]
