"""Several processes, on one machine or many, that run one program together by `jax.distributed`.

All of them take the same steps in the same order; the first reads and writes results, and tells the others of them.
"""

import json
import os
import sys
from typing import Any

import jax
import numpy as np

COORDINATOR, PROCESSES, PROCESS = "MSRNN_COORDINATOR", "MSRNN_PROCESSES", "MSRNN_PROCESS"
CLUSTER = "cluster"  # in place of the coordinator: JAX asks the cluster's own environment


def join() -> None:
    """Joins the processes that `msrnn launch` started, if it did start this one; before JAX is used at all.

    Raises:
      ValueError: where the others cannot be reached.
    """
    coordinator = os.environ.get(COORDINATOR)
    if coordinator is None:
        return
    problem = None
    _keep_stdout()
    try:
        if coordinator == CLUSTER:
            jax.distributed.initialize()
        else:
            count, index = int(os.environ[PROCESSES]), int(os.environ[PROCESS])
            jax.distributed.initialize(coordinator, count, index)
    except (RuntimeError, ValueError, KeyError) as error:
        problem = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    if problem is not None:
        raise ValueError(f"the other processes cannot be joined ({coordinator}): {problem}")


def _keep_stdout() -> None:
    """Gloo says on C's stdout, at some time, whom it is connected to: Python gets the true one for itself."""
    sys.stdout.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    sys.stdout = open(os.dup(1), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def is_first() -> bool:
    """Whether this process reads and writes results."""
    return jax.process_index() == 0


def from_first(value: Any) -> Any:
    """A JSON value as the first process has it; whatever the others give."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode() if is_first() else b"", np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.asarray(text.size, np.int32)))
    told = multihost_utils.broadcast_one_to_all(text if is_first() else np.zeros(size, np.uint8))
    return json.loads(np.asarray(told).tobytes())


def check_same(name: str, value: str) -> None:
    """Refuses to go on where a process has another value: it would work on something else.

    Raises:
      ValueError: in every process that differs from the first.
    """
    first = from_first(value)
    if value != first:
        raise ValueError(f"{name} of process {jax.process_index()} is {value!r}; that of the first is {first!r}")


def check_mesh(mesh: jax.sharding.Mesh | None) -> None:
    """Refuses a mesh on which some process has no device."""
    if jax.process_count() == 1:
        return
    there = jax.device_count()
    if mesh is None or mesh.size != there:
        size = "none" if mesh is None else f"of {mesh.size} devices"
        raise ValueError(f"mesh is {size}; it must take all {there} of the {jax.process_count()} processes")
