"""Experiments of the paper, one folder or file per table or figure; run them from the checkout."""

import sys

from msrnn_jax.cli.interrupts import end_at_once

if sys.argv[:1] == ["-m"]:  # so it is while `python -m` imports an experiment, which takes seconds
    end_at_once()
