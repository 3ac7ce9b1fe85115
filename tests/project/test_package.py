"""The package as a user gets it: without the tests' checks, without extras, as a wheel."""

import importlib.metadata
import os
import pathlib
import subprocess
import sys
import textwrap
import zipfile

import pytest
import tiny
from checkpoints import write_gguf, write_huggingface
from typer.testing import CliRunner
from versions import versions

import msrnn_jax as ms
from msrnn_jax.checkpoint.identity import fingerprint
from msrnn_jax.cli.app import app

ROOT = pathlib.Path(__file__).parents[2]


def python(code: str, *flags: str) -> str:
    """Runs code in a fresh interpreter and returns what it printed."""
    result = run(code, *flags)
    assert result.returncode == 0, result.stderr
    return result.stdout


def run(code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *flags, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.exhaustive
def test_wrong_types_are_refused_in_words():
    """Here the tests' own type checks are off, as they are for a user."""
    printed = python(
        f"""
        import jax.numpy as jnp, numpy as np
        import msrnn_jax as ms
        config = ms.{tiny.CONFIG!r}
        """.replace("rope=Rope", "rope=ms.Rope")
        + """
        import jax
        params = ms.init_params(config, jax.random.key(0))
        state = ms.init_state(config, ms.TOVA(), 4)
        ids = jnp.zeros(3, jnp.int32)
        cases = [
            lambda: ms.nll(config, ms.TOVA(), params, state, ids, ids[:2]),
            lambda: ms.nll(config, ms.TOVA(), params, state, jnp.ones(3), ids),
            lambda: ms.prefill(config, ms.TOVA(), params, state, ids[None]),
            lambda: ms.prefill(config, ms.TOVA(), params, state, [1, 2], 1.5),
            lambda: ms.init_state(config, ms.TOVA(), "64"),
            lambda: ms.init_state(config, ms.TOVA(), 1.5),
            lambda: ms.init_state(config, ms.TOVA(), 4, slots=9.0),
            lambda: ms.generate(config, ms.TOVA(), params, ids[None], budget=4, key=7),
            lambda: ms.generate(config, "tova", params, ids[None], budget=4),
            lambda: ms.init_state(config, ms.TOVA, 4),
            lambda: ms.generate(config, ms.TOVA(), params, ids[None], budget=4, sampler="greedy"),
            lambda: ms.generate(config, ms.TOVA(), params, ids[None], budget=4, stop=(2.5,)),
            lambda: ms.Random(seed=2.5),
            lambda: ms.Temperature("hot"),
            lambda: ms.TopK(2.5),
            lambda: ms.TopP(None),
            lambda: ms.Chain([ms.TopK(3)]),
            lambda: ms.TOVA(sinks=-1),
            lambda: ms.TOVA(sinks=1.0),
            lambda: ms.TOVA(scope="model"),
            lambda: ms.H2O(recent="all"),
            lambda: ms.Config(**{**config.to_dict(), "rope": "yarn"}),
        ]
        for case in cases:
            try:
                case()
            except ValueError as error:
                print(error)
        """
    )
    assert printed.splitlines() == [
        "targets has shape (2,); it must be that of tokens, (3,)",
        "tokens has dtype float32; token numbers must be integers",
        "tokens has shape (1, 3); it must be [T] with at least one token",
        "length has dtype float64; lengths must be integers",
        "budget is '64'; it must be a whole number of at least 1",
        "budget is 1.5; it must be a whole number of at least 1",
        "slots is 9.0; it must be a whole number of at least 2",
        "key is 7; it must be a PRNG key, such as jax.random.key(0)",
        "policy is 'tova'; it must be a Policy, such as TOVA() or parse_policy('tova')",
        "policy is <class 'msrnn_jax.policies.tova.TOVA'>; it must be a Policy, such as TOVA() or parse_policy('tova')",
        "sampler is 'greedy'; it must be a sampler, such as Greedy() or Temperature(0.8)",
        "stop has dtype float64; token numbers must be integers",
        "Random: seed is 2.5; it must be an integer",
        "temperature is 'hot'; it must be a number from 1e-06 to 1e+06 (Greedy() is the limit)",
        "k is 2.5; it must be a whole number of at least 1",
        "p is None; it must be a number from 1e-06 to 1",
        "samplers is [TopK(k=3)]; it must be a tuple of samplers",
        "TOVA: sinks is -1; it must be an integer of at least 0",
        "TOVA: sinks is 1.0; it must be an integer of at least 0",
        "TOVA: scope is 'model'; it must be one of layer, head",
        "H2O: recent is 'all'; it must be an integer of at least 0, half, or a share such as 0.3",
        "Config.rope is 'yarn'; it must be a Rope",
    ]


def test_the_library_needs_no_torch_and_no_extra():
    printed = python(
        """
        import sys
        for name in ("torch", "transformers", "matplotlib", "gguf", "safetensors", "beartype", "pytest"):
            sys.modules[name] = None  # importing it fails
        import msrnn_jax, msrnn_jax.cli.app, msrnn_jax.model.cell
        print("ready")
        """
    )
    assert printed == "ready\n"


def test_the_harness_needs_no_torch_and_is_asked_for_in_one_line():
    code = """
        import runpy, sys
        sys.modules["{}"] = None
        sys.argv = ["lm_eval", "--model_args", "pretrained=nowhere", "--tasks", "msrnn_choices"]
        runpy.run_module("msrnn_jax.lm_eval", run_name="__main__")
        """
    for missing, said in (
        ("torch", "error: checkpoint 'nowhere' does not exist"),
        ("lm_eval", "error: lm_eval is not"),
    ):
        done = run(code.format(missing))
        assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(said), done.stderr


@pytest.mark.exhaustive
def test_folders_are_converted_without_an_extra(tmp_path):
    write_huggingface(tmp_path / "folder")
    printed = python(
        f"""
        import sys
        for name in ("torch", "transformers", "gguf", "huggingface_hub", "sentencepiece", "accelerate"):
            sys.modules[name] = None  # importing it fails
        from convert import convert
        from convert.huggingface.export import export
        ours = convert({str(tmp_path / "folder")!r}, {str(tmp_path / "ours")!r})
        print(export(ours, {str(tmp_path / "theirs")!r}).name)
        for source in ("organisation/name", "organisation/name/model.gguf"):
            try:
                convert(source, {str(tmp_path / "none")!r})
            except ValueError as error:
                print(error)
        """
    )
    missing = "the package 'huggingface_hub' is missing; the extra 'convert' brings it (pip install '.[convert]')"
    assert printed.splitlines() == ["theirs", missing, missing]


def test_a_command_answers_before_jax_is_imported():
    """Help, wrong options and completion, which a shell waits for."""
    printed = python(
        """
        import sys
        for name in ("jax", "flax", "numpy", "tokenizers", "orbax"):
            sys.modules[name] = None  # importing it fails
        import msrnn_jax, msrnn_jax.cli.app
        from typer.testing import CliRunner
        print(CliRunner().invoke(msrnn_jax.cli.app.app, ["generate", "--help"]).exit_code)
        print(CliRunner().invoke(msrnn_jax.cli.app.app, ["generate", "x", "--budget", "many"]).exit_code)
        """
    )
    assert printed.split() == ["0", "2"]


def test_the_shell_completes_policies():
    words = "msrnn generate checkpoint --policy tova"
    environment = {
        "_MSRNN_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": "4",
        "PATH": os.environ["PATH"],
    }
    code = "import sys; sys.argv = ['msrnn']; from msrnn_jax.__main__ import main; main()"
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.split() == ["tova", "tova:scope=head"], result.stderr


def test_every_public_name_is_there_and_no_module_of_the_root_bears_one():
    printed = python(
        """
        import importlib.util
        import msrnn_jax as ms
        print("TOVA" in dir(ms), hasattr(ms, "nothing"), all(hasattr(ms, name) for name in ms.__all__))
        from msrnn_jax import *
        print(ms.prefill is prefill, len(set(ms.__all__)) == len(ms.__all__))
        print([name for name in ms.__all__ if importlib.util.find_spec(f"msrnn_jax.{name}")])
        """
    )
    assert printed == "True False True\nTrue True\n[]\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    # Built from a copy, so that building leaves nothing in the checkout.
    subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], check=True, capture_output=True)
    copy.mkdir()
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(copy)]
    subprocess.run(command, check=True, capture_output=True)
    (made,) = folder.glob("*.whl")
    return made


@pytest.mark.exhaustive
def test_the_wheel_has_one_top_level_name(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"msrnn_jax"}
    for name in ("py.typed", "policies/tova.py", "convert/cli.py", "tracing/page.html"):
        assert f"msrnn_jax/{name}" in names
    library = {str(path.relative_to(ROOT)) for path in (ROOT / "msrnn_jax").rglob("*.py")}
    assert library <= set(names)


@pytest.mark.exhaustive
def test_the_wheel_works_away_from_the_checkout(wheel, tmp_path):
    """The command and its converter run from the installed files alone."""
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    code = f"import sys; sys.path.insert(0, {str(target)!r}); from msrnn_jax.__main__ import main; import msrnn_jax; "
    code += "print(msrnn_jax.__file__, file=sys.stderr); sys.argv = ['msrnn', *sys.argv[1:]]; main()"

    def msrnn(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-P", "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert str(target) in done.stderr
        return done

    refused = msrnn("convert", "nowhere", "out")
    assert refused.returncode == 2
    assert "error: nowhere does not exist; the source must be" in refused.stderr
    write_huggingface(tmp_path / "folder")
    write_gguf(tmp_path / "model.gguf")
    for arguments in (["folder", "one"], ["model.gguf", "two"], ["export", "two", "back"], ["import", "back", "three"]):
        done = msrnn("convert", *arguments)
        assert (done.returncode, done.stdout) == (0, f"{arguments[-1]}\n"), done.stderr
    prints = {fingerprint(*ms.load(tmp_path / name)) for name in ("one", "two", "three")}
    assert len(prints) == 1


def test_one_version():
    assert set(versions().values()) == {importlib.metadata.version("msrnn_jax")}
    printed = CliRunner().invoke(app, ["--version"]).stdout
    assert printed == f"msrnn_jax {importlib.metadata.version('msrnn_jax')}\n"
