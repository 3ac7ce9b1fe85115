"""Several processes, on one machine or many, that run one program together by `jax.distributed`.

All of them take the same steps in the same order; the first reads and writes results, and tells the others of them.
"""

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from msrnn_jax.io.environment import CLUSTER, COORDINATOR, PROCESS, PROCESSES
from msrnn_jax.io.errors import first_line

LOST = ("Gloo", "NCCL", "oordination service", "eartbeat")  # in what JAX says where a process is gone


def join_processes() -> None:
    """Joins the processes that `msrnn launch` started, if it did start this one; before JAX is used at all.

    Raises:
      ValueError: where the others cannot be reached.
    """
    coordinator = os.environ.get(COORDINATOR)
    if coordinator is None:
        return
    problem = None
    _keep_stdout()
    with contextlib.suppress(AttributeError):  # else it would take SIGTERM, which is to end this process
        jax.config.update("jax_enable_preemption_service", False)
    try:
        if coordinator == CLUSTER:
            jax.distributed.initialize()
        else:
            count, index = int(os.environ[PROCESSES]), int(os.environ[PROCESS])
            jax.distributed.initialize(coordinator, count, index)
    except (RuntimeError, ValueError, KeyError, IndexError) as error:
        problem = first_line(error)
    if problem is not None:
        raise ValueError(f"the other processes cannot be joined ({coordinator}): {problem}")


def _keep_stdout() -> None:
    """Gloo says on C's stdout, at some time, whom it is connected to: Python gets the true one for itself."""
    sys.stdout.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    sys.stdout = open(os.dup(1), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process has ended."""
    if not isinstance(error, jax.errors.JaxRuntimeError) or jax.process_count() == 1:
        return False
    return any(word in str(error) for word in LOST)


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


def check_same(values: Mapping[str, Any]) -> None:
    """Refuses to go on where a process has other values: it would work on something else.

    Args:
      values: JSON, by name.

    Raises:
      ValueError: in every process that differs from the first, naming the first difference.
    """
    ours, first = json.loads(json.dumps(values)), from_first(values)
    for name, value in ours.items():
        if value != first[name]:
            place = f"process {jax.process_index()}"
            raise ValueError(f"{name} is {value!r} in {place}, but {first[name]!r} in the first; it must be one")


def check_mesh(mesh: jax.sharding.Mesh | None) -> None:
    """Refuses a mesh on which some process has no device."""
    if jax.process_count() == 1:
        return
    there = jax.device_count()
    if mesh is None or mesh.size != there:
        size = "none" if mesh is None else f"of {mesh.size} devices"
        raise ValueError(f"mesh is {size}; it must take all {there} of the {jax.process_count()} processes")
