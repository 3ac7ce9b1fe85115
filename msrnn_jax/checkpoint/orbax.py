"""Weights on disk, by Orbax, the only file that knows it: trees of named arrays, whole or one at a time."""

import contextlib
import functools
import gc
import itertools
import logging
import math
import pathlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from msrnn_jax.params import Params

CHUNK_BYTES = 2**25  # of what is compressed, and later read, at once
GROUP_BYTES = 2**26  # of small weights that are written together


class LazyArray:
    """A weight that has the shape and dtype of an array and becomes one when it is read."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, read: Callable[[], np.ndarray]):
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.read = read

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def reshape(self, shape: tuple[int, ...]) -> "LazyArray":
        """The same numbers in another shape."""
        return LazyArray(shape, self.dtype, lambda: self.read().reshape(shape))


def lazy(leaf: Any) -> LazyArray:
    """An array, or a `LazyArray`, as the latter."""
    return leaf if isinstance(leaf, LazyArray) else LazyArray(leaf.shape, leaf.dtype, lambda: np.asarray(leaf))


def write_weights(folder: pathlib.Path, tree: Any) -> None:
    """Saves a tree of arrays and `LazyArray` ones, holding one large one or a few small ones in memory at a time."""
    import orbax.checkpoint as orbax  # slow to import, and only files need it

    class Handler(orbax.type_handlers.NumpyHandler):
        """Orbax would have the values of all leaves before it writes the first."""

        def __init__(self):
            super().__init__(deepcopy_host_arrays=False)

        async def serialize(self, values: Sequence[Any], infos: Sequence[Any], args: Any = None) -> Sequence[Any]:
            unfinished, held = [], 0
            for value, info, arg in zip(values, infos, args, strict=True):
                if held + value.nbytes > GROUP_BYTES:  # each wait is a commit, with files of its own
                    for written in unfinished:
                        written.result()
                    unfinished, held = [], 0
                unfinished += await super().serialize([value.read()], [info], [arg])
                held += value.nbytes
            return unfinished

        async def _open_and_write(self, value: np.ndarray, spec: Any, context: Any) -> None:
            """Orbax's own hands over all chunks at once, and TensorStore then holds a second copy of all, encoded."""
            import tensorstore

            store: Any = await tensorstore.open(tensorstore.Spec(spec), create=True, open=True, context=context)
            sides = zip(value.shape, store.chunk_layout.write_chunk.shape or (), strict=True)
            for chunk in itertools.product(*(_cut(length, size) for length, size in sides)):
                await store[chunk].write(value[chunk], can_reference_source_data_indefinitely=True)

    tree = jax.tree.map(lazy, tree)
    arguments = jax.tree.map(lambda leaf: orbax.SaveArgs(chunk_byte_size=CHUNK_BYTES), tree)
    registry = orbax.type_handlers.create_type_handler_registry((LazyArray, Handler()))
    with _quiet(), orbax.Checkpointer(orbax.PyTreeCheckpointHandler(type_handler_registry=registry)) as checkpointer:
        checkpointer.save(folder, orbax.args.PyTreeSave(tree, save_args=arguments))


def _cut(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def stored_shapes(folder: pathlib.Path) -> Any:
    """The tree of what is stored, its leaves with a shape and a dtype.

    Raises:
      ValueError: where what Orbax looks it up in is missing or damaged.
    """
    with _reader() as reader:
        found = reader.metadata(folder).item_metadata
        if found is None:
            raise ValueError("the index of the weights (_METADATA, manifest.ocdbt or d/) is missing or damaged")
        return dict(found)


def read_weights(folder: pathlib.Path, wanted: Any) -> Any:
    """The stored arrays, by a tree of shapes with the dtypes and shardings they are to have."""
    with _reader() as reader:
        return reader.restore(folder, wanted)


def read_weight(folder: pathlib.Path, keys: Sequence[str], dtype: Any) -> np.ndarray:
    """The array at the end of these keys; nothing else is read.

    By TensorStore, since Orbax starts an event loop and threads for every call.
    """
    import tensorstore

    base = {"driver": "file", "path": f"{folder}/"}
    place = {"driver": "ocdbt", "base": base, "path": f"{'.'.join(keys)}/"}
    spec = {"driver": "zarr", "kvstore": place}
    return tensorstore.open(spec, open=True, read=True).result().read().result().astype(dtype, copy=False)


@contextlib.contextmanager
def _reader() -> Iterator[Any]:
    import orbax.checkpoint as orbax

    with _quiet(), orbax.StandardCheckpointer() as reader:
        yield reader


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax from telling every file, every failure twice, and what a failure leaves unfinished."""
    logger = logging.getLogger("absl")
    level, hook = logger.level, sys.unraisablehook
    logger.setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = hook if isinstance(hook, _Others) else _Others(hook)
    done = False
    try:
        yield
        done = True
    finally:
        logger.setLevel(level)
        if done:
            sys.unraisablehook = hook
        else:  # the hook stays: coroutines are collected now and later
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                gc.collect()
                time.sleep(0.2)  # for the callbacks of reads that were under way


class _Others:
    """Shows an error that nobody can catch, unless it is of a read or write that failed before."""

    def __init__(self, hook: Callable[[Any], Any]):
        self.hook = hook

    def __call__(self, lost: Any) -> None:
        code = getattr(lost.object, "cr_code", None)
        ours = code is not None and ("orbax" in code.co_filename or "tensorstore" in code.co_filename)
        if not ours and "Event loop is closed" not in str(lost.exc_value):
            self.hook(lost)


def to_tree(params: Params) -> dict[str, Any]:
    """Nested dicts with plain names, so that other programs can read the checkpoint without our classes."""
    tree: dict[str, Any] = {}
    for where, leaf in jax.tree_util.tree_leaves_with_path(params):
        node, (*above, name) = tree, path_names(where)
        for step in above:
            node = node.setdefault(step, {})
        node[name] = leaf
    return tree


def from_tree(shapes: Params, tree: Mapping[str, Any]) -> Params:
    def found(where: Any, leaf: Any) -> Any:
        del leaf
        return functools.reduce(lambda node, name: node[name], path_names(where), tree)

    return jax.tree_util.tree_map_with_path(found, shapes)


def path_names(where: Sequence[Any]) -> list[str]:
    """What a place in the params is called on disk, such as layers, 0, query."""
    return [str(step.idx) if isinstance(step, jax.tree_util.SequenceKey) else step.name for step in where]
