"""Policies as text, there and back."""

import sys

import jax
import jax.numpy as jnp
import pytest
import tiny

import msrnn_jax as ms
from msrnn_jax.policies.registry import POLICIES


@pytest.mark.parametrize(
    "text",
    [
        "full",
        "random",
        "random:seed=7",
        "window",
        "window:sinks=4",
        "h2o",
        "h2o:scope=layer,recent=128",
        "h2o:recent=0",
        "tova",
        "tova:scope=head",
        "tova:sinks=2,recent=5",
        "tova:recent=half",
    ],
)
def test_text_is_a_fixed_point(text):
    policy = ms.parse_policy(text)
    assert ms.parse_policy(str(policy)) == policy
    assert sorted(str(policy).replace(":", ",").split(",")) == sorted(text.replace(":", ",").split(","))


def test_options_are_what_they_say():
    assert ms.parse_policy("h2o") == ms.H2O() == ms.H2O(scope="head", recent=None, sinks=0)
    assert ms.parse_policy("h2o:recent=half,sinks=2") == ms.H2O(sinks=2)
    assert ms.parse_policy(" window:sinks=4 ") == ms.Window(sinks=4) != ms.Window(sinks=3)
    assert ms.parse_policy("random:seed=-2") == ms.Random(seed=-2)
    assert str(ms.H2O(scope="layer", recent=3)) == "h2o:scope=layer,recent=3"
    assert ms.TOVA() != ms.H2O() and len({ms.TOVA(), ms.TOVA(), ms.Window()}) == 2


FILE = '''
import jax.numpy as jnp
from flax import struct
from msrnn_jax import Policy

class Mine(Policy):
    """Keeps what lies near a position."""

    centre: int = struct.field(pytree_node=False, default=3)
    on: bool = struct.field(pytree_node=False, default=True)
    alpha: float = 0.5

    def score(self, layer, t):
        return -self.alpha * jnp.abs(layer.positions - self.centre).astype(jnp.float32)
'''


def test_a_policy_of_your_own_from_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    policy = ms.parse_policy(f"{file}:Mine:centre=5,alpha=2,on=False")
    assert (policy.centre, policy.alpha, policy.on) == (5, 2.0, False)
    again = ms.parse_policy(str(policy))
    assert again == policy and type(again) is type(policy)  # one class per file, or jit would retrace
    state = ms.init_state(tiny.CONFIG, policy, 4)
    last, _ = tiny.unroll_jit(tiny.CONFIG, policy, tiny.params(), state, tiny.tokens(12))
    assert tiny.held(last.layers[0]) == [[4, 5, 6, 7]]  # of 3 and 7, equally far, the older went
    assert jax.tree.leaves(policy) == [2.0]


def test_a_policy_of_your_own_from_a_module(tmp_path, monkeypatch):
    (tmp_path / "some_policies.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    policy = ms.parse_policy("some_policies:Mine")
    assert str(policy) == "some_policies:Mine" and policy.centre == 3
    assert str(policy.replace(alpha=jnp.float32(0.25))) == "some_policies:Mine:alpha=0.25"


def test_a_module_of_the_current_folder_is_found_and_the_path_stays(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "beside.py").write_text(FILE + "\n\nclass Outer:\n    Inner = Mine\n")
    monkeypatch.chdir(tmp_path)
    path = [folder for folder in sys.path if folder not in ("", str(tmp_path))]
    monkeypatch.setattr(sys, "path", path.copy())
    with pytest.raises(ValueError, match="policy 'own.missing' is neither .* ModuleNotFoundError"):
        ms.parse_policy("own.missing:Mine")
    assert sys.path == path
    policy = ms.parse_policy("own.beside:Mine:alpha=2")
    assert sys.path == path and str(policy) == "own.beside:Mine:alpha=2.0"
    assert ms.parse_policy("own.beside:Outer.Inner:alpha=2") == policy
    monkeypatch.syspath_prepend(tmp_path)
    path = sys.path.copy()
    ms.parse_policy("own.beside:Mine")
    assert sys.path == path  # a folder that is on it stays on it


def test_a_file_finds_modules_of_the_current_folder_as_an_installed_script_runs_it(tmp_path, monkeypatch):
    (tmp_path / "centre_of_mine.py").write_text("CENTRE = 5\n")
    (tmp_path / "mine.py").write_text(
        "import centre_of_mine\n" + FILE.replace("default=3", "default=centre_of_mine.CENTRE")
    )
    monkeypatch.chdir(tmp_path)
    path = [folder for folder in sys.path if folder not in ("", str(tmp_path))]
    monkeypatch.setattr(sys, "path", path.copy())
    assert ms.parse_policy("mine.py:Mine").centre == 5
    assert sys.path == path


def test_a_file_of_a_package_is_asked_for_as_a_module(tmp_path, monkeypatch):
    (tmp_path / "package_of_mine").mkdir()
    (tmp_path / "package_of_mine" / "beside.py").write_text("")
    (tmp_path / "package_of_mine" / "mine.py").write_text("from . import beside\n" + FILE)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no known parent package; .* is given as package.module:Class"):
        ms.parse_policy("package_of_mine/mine.py:Mine")
    assert ms.parse_policy("package_of_mine.mine:Mine").centre == 3


def test_one_file_is_one_class_however_it_is_named(tmp_path, monkeypatch):
    (tmp_path / "a:b").mkdir()
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "a:b" / "mine.py").write_text(FILE.replace("default=3", "default=4"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    texts = ["mine.py", "./mine.py", "./a:b/../mine.py", f"{tmp_path}/mine.py", "~/mine.py"]
    policies = [ms.parse_policy(f"{text}:Mine:alpha=2") for text in texts]
    assert all(policy == policies[0] and str(policy) == "mine.py:Mine:alpha=2.0" for policy in policies)
    other = ms.parse_policy("./a:b/mine.py:Mine")
    assert (other.centre, policies[0].centre) == (4, 3) and type(other) is not type(policies[0])
    assert str(other) == "./a:b/mine.py:Mine" and ms.parse_policy(str(other)) == other
    monkeypatch.chdir(tmp_path / "a:b")
    assert ms.parse_policy("mine.py:Mine") == other  # the same text, another folder
    for policy in (other, policies[0]):
        assert ms.parse_policy(str(policy)) == policy
    assert str(policies[0]) == f"{tmp_path}/mine.py:Mine:alpha=2.0"  # not below the current folder
    (tmp_path / "a:b" / "mine.py").write_text("1 / 0")
    assert ms.parse_policy("mine.py:Mine") == other  # it ran once


def test_options_without_a_value_go_there_and_back(tmp_path):
    file = tmp_path / "optional.py"
    option = "limit: float | None = struct.field(pytree_node=False, default=None)"
    file.write_text(FILE.replace("alpha: float = 0.5", f"alpha: float = 0.5\n    {option}"))
    for text, value in (("limit=3", 3), ("limit=0.5", 0.5), ("limit=None", None)):
        policy = ms.parse_policy(f"{file}:Mine:{text}")
        assert policy.limit == value and type(policy.limit) is type(value)
        assert ms.parse_policy(str(policy)) == policy
    with pytest.raises(ValueError, match="limit is 'much'; it must be a number or None"):
        ms.parse_policy(f"{file}:Mine:limit=much")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"policy '' is unknown; it must be one of {', '.join(POLICIES)}, or module:Class"),
        ("tovva", "policy 'tovva' is unknown"),
        ("tova:sink=4", "option 'sink=4' is unknown; it must be one of scope=, sinks=, recent="),
        ("tova:sinks", "option 'sinks' is unknown"),
        ("tova:sinks=four", "sinks is 'four'; it must be an integer"),
        ("tova:sinks=1,sinks=2", "option 'sinks' is given twice"),
        ("tova:recent=all", "recent is 'all'; it must be an integer"),
        ("tova:sinks=-1", "TOVA: sinks is -1; it must be an integer of at least 0"),
        ("tova:scope=model", "TOVA: scope is 'model'; it must be one of layer, head"),
        ("no_such_module:Mine", "policy 'no_such_module' is neither one of full"),
        ("no/such/file.py:Mine", "policy file 'no/such/file.py' does not exist"),
        ("json:JSONDecoder", "policy json:JSONDecoder: 'JSONDecoder' is not a Policy in json"),
        ("no/such/file.py", "policy file 'no/such/file.py' does not exist"),
        ("/:Mine", "policy '/:Mine': '/' is no Python file; it must be path/to/file.py:Class"),
        ("some/file:Mine", "policy 'some/file:Mine': 'some/file' is no Python file"),
        (
            "~no-such-user/mine.py:Mine",
            "policy file '~no-such-user/mine.py' cannot be found: Could not determine home directory",
        ),
    ],
)
def test_refusals_name_what_is_wrong(text, message):
    with pytest.raises(ValueError) as raised:
        ms.parse_policy(text)
    assert message in str(raised.value)


def test_a_file_that_does_not_run_is_refused(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("1 / 0")
    with pytest.raises(ValueError, match="does not run: ZeroDivisionError: division by zero"):
        ms.parse_policy(f"{file}:Mine")
    file.write_text(FILE + "\n    unknown: bool = struct.field(pytree_node=False, default=True)\n")
    with pytest.raises(ValueError, match="on is 'maybe'; it must be True or False"):
        ms.parse_policy(f"{file}:Mine:on=maybe")
    file = tmp_path / "needy.py"
    file.write_text("from msrnn_jax import Policy\n\nclass Mine(Policy):\n    alpha: float\n    score = print\n")
    with pytest.raises(ValueError, match="needy.py:Mine': .* missing 1 required .*'alpha'"):
        ms.parse_policy(f"{file}:Mine")
    assert ms.parse_policy(f"{file}:Mine:alpha=2").alpha == 2.0
    file = tmp_path / "strict.py"
    file.write_text(FILE + "\n    def __post_init__(self):\n        raise KeyError('no\\nkey')\n")
    with pytest.raises(ValueError, match=r"strict.py:Mine:alpha=2' cannot be made: KeyError: 'no\\nkey'$"):
        ms.parse_policy(f"{file}:Mine:alpha=2")
    with pytest.raises(ValueError, match=r"^policy '\S+strict.py' names no class; .*:Class; there is Mine$"):
        ms.parse_policy(str(file))
    with pytest.raises(ValueError, match=r"'Yours' is not a Policy in \S+strict.py; there is Mine$"):
        ms.parse_policy(f"{file}:Yours")
    with pytest.raises(ValueError, match=r"policy file '\S+' is not a file"):
        (tmp_path / "folder.py").mkdir()
        ms.parse_policy(f"{tmp_path}/folder.py:Mine")
