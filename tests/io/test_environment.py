"""Programs that XLA has compiled are kept between processes."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
CODE = """
import os, pathlib, sys
import jax
import jax.numpy as jnp
import msrnn_jax as ms

kept = lambda folder: any("cube" in name for name in os.listdir(folder))
here = pathlib.Path(sys.argv[1])
jax.jit(lambda x: x + 1)(1.0)  # that JAX has compiled before does not matter
default, own = here / "cache" / "xla", here / "own" / "deep"
jax.config.update("jax_enable_compilation_cache", False)
print(ms.keep_compilations(), ms.keep_compilations(own), default.parent.exists() or own.exists())
jax.config.update("jax_enable_compilation_cache", True)
for folder, given in ((default, None), (own, own)):
    def cube(x):
        return x**3

    print(ms.keep_compilations(given) == ms.keep_compilations() == str(folder), kept(folder), end=" ")
    jax.jit(cube)(jnp.ones(len(str(folder))))
    print(kept(folder))
(here / "file").touch()
try:
    ms.keep_compilations(here / "file" / "below")
except ValueError as error:
    print(str(error).partition("; ")[2])
jax.config.update("jax_compilation_cache_dir", None)
os.environ["MSRNN_CACHE"] = str(here / "file")
print(ms.keep_compilations())
"""


def test_what_is_compiled_is_kept_in_the_default_folder_or_in_one_s_own(tmp_path: pathlib.Path) -> None:
    others = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    variables = {**others, "MSRNN_CACHE": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", CODE, str(tmp_path)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines() == [
        "None None False",
        "True False True",
        "True False True",
        "it must be one that can be written",
        "None",
    ], done.stderr
