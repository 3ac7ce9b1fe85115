"""Strict JAX settings, run-time shape checks, and the models that tests share."""

import importlib.util
import os
import pathlib
import sys
import tempfile

import filelock
import jax
import pytest
from devices import QUICK
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_enable_compilation_cache", False)  # of this process; commands that tests start keep theirs

# XLA reads its flags once, here. Commands that tests start are to compile as they do for users, and do not see them.
with pytest.MonkeyPatch.context() as _start:
    _flags = f"{os.environ.get('XLA_FLAGS', '')} {QUICK['XLA_FLAGS']}"
    _start.setenv("XLA_FLAGS", _flags.strip())  # XLA takes what begins with a blank for the name of a file
    jax.devices()

# Programs for TPU and GPU are compiled in an environment of their own: `make compiled`.
COMPILERS = ("libtpu", "jax_cuda13_plugin")
collect_ignore_glob = [] if all(map(importlib.util.find_spec, COMPILERS)) else ["compiled/*"]

_ROOT = pathlib.Path(__file__).parent.parent

# Data classes stay unchecked, since transformations put things that are no arrays into them; the config checks itself.
_UNCHECKED = {"msrnn_jax.params", "msrnn_jax.state", "msrnn_jax.config"}
_CHECKED = [
    ".".join(path.relative_to(_ROOT).with_suffix("").parts)
    for path in sorted((_ROOT / "msrnn_jax").rglob("*.py"))
    if path.name != "__init__.py"
]
_CHECKED = [name for name in _CHECKED if name not in _UNCHECKED]
assert "msrnn_jax.model.llama" in _CHECKED and "msrnn_jax.policies.tova" in _CHECKED
assert not any(name in sys.modules for name in _CHECKED), "the library was imported before its hook"
install_import_hook(_CHECKED, "beartype.beartype")


def pytest_configure(config: pytest.Config) -> None:
    """Commands that tests start share what XLA compiles."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="msrnn-xla-")
        config.add_cleanup(folder.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


@pytest.hookimpl(tryfirst=True)  # before fixtures of any scope
def pytest_runtest_setup(item: pytest.Item) -> None:
    """XLA leaves LLVM's passes out, since programs of tiny models take longer to compile than to run.

    Not for what is marked as optimised: what runs real weights for long, or holds programs against each other so
    closely that these passes may matter. Commands in processes of their own have them, too.
    """
    jax.config.update("jax_disable_most_optimizations", item.get_closest_marker("optimised") is None)


# What takes a minute and more, the longest first: begun last, it would keep one worker busy while the others wait.
LONGEST = "docs pages smollm2 extend_real extend readme processes finetune generate perplexity".split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first; `make test` hands files out in this order."""
    order = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The real SmolLM2-135M-Instruct, converted once for all tests, in whichever process they run."""
    from convert import convert

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers
    path = folder / "checkpoints" / "smollm2-135m"
    with filelock.FileLock(folder / "checkpoints.lock"):
        return path if path.exists() else convert("smollm2-135m", path)


@pytest.fixture(scope="module", autouse=True)
def _forget_compilations():
    """Every compiled program holds memory maps, of which the kernel grants a process 65,530."""
    yield
    maps = pathlib.Path("/proc/self/maps")  # of Linux
    if not maps.exists() or maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where nothing may be skipped, a skip is a failure: CI must run the parity tests."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("MSRNN_NO_SKIPS") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
