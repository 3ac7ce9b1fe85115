"""Models from a hub on loopback: the needed files and no others, of one commit, whole, and every failure in words."""

import errno
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import huggingface_hub
import loopback_hub
import pytest
from checkpoints import tiny_tokenizer, write_gguf, write_huggingface
from huggingface_hub import constants
from loopback_hub import Repository, cut, other, stall, status

from convert import conversion
from convert.folder import Folder
from convert.hub import fetch as convert_hub
from convert.hub.fetch import fetch
from convert.hub.name import is_hub_name, parse_hub_name
from convert.resolve import resolve

NAME = "maker/tiny-llama_1.0"
TOKEN = "hf_loopbackSecret123"
SMALL = {
    "generation_config.json": {"eos_token_id": 2},
    "tokenizer_config.json": {"bos_token": "<s>"},
    "special_tokens_map.json": {"bos_token": "<s>", "eos_token": "</s>"},
    "chat_template.jinja": "{{ messages }}",
    "tokenizer.json": tiny_tokenizer(),
}
# What real repositories hold besides, and no conversion reads.
OTHERS = {
    "README.md": b"# hello",
    ".gitattributes": b"*.safetensors filter=lfs",
    "pytorch_model.bin": b"\x80\x04pickle",
    "original/tokenizer.model": b"sp",
    "modeling_own.py": b"raise SystemExit",
    "tokenizer.model": b"sp",
    "model.fp16.safetensors": b"half",
    "model.gguf": b"GGUF",
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that commands and this process take for the one of Hugging Face, with nobody logged in."""
    with loopback_hub.serve() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))  # of commands
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "home/token"))  # of this process
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield hub


@pytest.fixture
def no_waiting(monkeypatch):
    """huggingface_hub waits a second before it goes on after an accident."""
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda seconds: None)


def folder_files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The files of a checkpoint in one piece."""
    return folder_files(write_huggingface(tmp_path_factory.mktemp("hub") / "model", files=SMALL))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """The files of a checkpoint in three."""
    return folder_files(write_huggingface(tmp_path_factory.mktemp("hub") / "model", files=SMALL, shards=3))


def get(tmp_path, name=NAME, **options):
    """What is fetched, and the lines reported."""
    lines = []
    return fetch(name, cache=tmp_path / "cache", report=lines.append, **options), lines


def refusal(tmp_path, name=NAME, **options):
    with pytest.raises(ValueError) as caught:
        get(tmp_path, name, **options)
    line = str(caught.value)
    assert line.isprintable() and TOKEN not in line
    return line


def test_the_needed_files_and_no_others_are_asked_for(hub, tmp_path, model):
    hub.repositories[NAME] = repository = Repository({**model, **OTHERS})
    found, lines = get(tmp_path)
    assert found[1:4] == (NAME, "main", repository.refs["main"])
    assert folder_files(found.path) == model
    assert sorted(hub.asked("GET")) == sorted(set(model) - {"model.safetensors"})
    assert found.path.is_relative_to(tmp_path / "cache/huggingface")
    assert repository.refs["main"] in lines[0] and "config.json" in lines[0]
    assert "downloading model.safetensors" in lines[1]
    hub.requests.clear()
    again, lines = get(tmp_path)
    assert again == found and hub.asked("GET") == [] and len(lines) == 1
    assert not any("/blob/" in request.path for request in hub.requests)


def test_shards_are_those_that_the_index_names(hub, tmp_path, sharded):
    stray = {"model-00009-of-00009.safetensors": b"stray", "consolidated.safetensors": b"other"}
    hub.repositories[NAME] = Repository({**sharded, **stray, **OTHERS})
    found, lines = get(tmp_path)
    assert folder_files(found.path) == sharded and len(sharded) == 10
    assert sum("downloading" in line for line in lines) == 3 and "3 of 3" in lines[-1]


@pytest.mark.parametrize("bad", ["../../etc/passwd.safetensors", "pytorch_model.bin", 3, "\x1b[2J.safetensors", None])
def test_an_index_names_plain_safetensors_files(hub, tmp_path, sharded, bad):
    index = {"weight_map": {"model.norm.weight": bad} if bad else {}}
    hub.repositories[NAME] = Repository({**sharded, "model.safetensors.index.json": json.dumps(index).encode()})
    line = refusal(tmp_path)
    assert "model.safetensors.index.json names" in line and "must name .safetensors files" in line


def test_a_shard_that_the_repository_lacks(hub, tmp_path, sharded):
    del (files := dict(sharded))["model-00002-of-00003.safetensors"]
    hub.repositories[NAME] = repository = Repository(files)
    line = refusal(tmp_path)
    assert "model-00002-of-00003.safetensors (named by" in line and f"is not at {repository.refs['main']}" in line
    assert not any("/blob/" in request.path for request in hub.requests)


def test_tokenizer_model_only_where_there_is_no_tokenizer_json(hub, tmp_path, model):
    del (files := dict(model))["tokenizer.json"]
    hub.repositories[NAME] = Repository({**files, **OTHERS})
    assert get(tmp_path)[0].path.joinpath("tokenizer.model").read_bytes() == OTHERS["tokenizer.model"]


def test_the_check_sees_all_but_the_weights_and_can_end_it(hub, tmp_path, model):
    hub.repositories[NAME] = Repository(model)

    def check(folder):
        assert set(folder_files(folder)) == set(model) - {"model.safetensors"}
        raise ValueError("model_type 'mamba' (must be 'llama')")

    assert refusal(tmp_path, check=check) == "model_type 'mamba' (must be 'llama')"
    assert "model.safetensors" not in hub.asked("HEAD")


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/3", "commit"])
def test_revisions(hub, tmp_path, model, revision, monkeypatch):
    hub.repositories[NAME] = repository = Repository(model)
    old = repository.commit("v1.0" if revision == "commit" else revision, {**model, "chat_template.jinja": b"old"})
    repository.commit("main", {**model, "chat_template.jinja": b"new"})
    asked = old if revision == "commit" else revision
    found, _ = get(tmp_path, revision=asked)
    assert found.revision == asked and found.commit == old
    assert (found.path / "chat_template.jinja").read_text() == "old"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert get(tmp_path, revision=asked)[0] == found


def test_a_branch_that_moves_meanwhile_changes_nothing(hub, tmp_path, model):
    hub.repositories[NAME] = repository = Repository(model)
    before = repository.refs["main"]

    def check(folder):
        repository.commit("main", {**model, "model.safetensors": b"another"})

    found, _ = get(tmp_path, check=check)
    assert found.commit == before and folder_files(found.path) == model


def test_one_gguf_file(hub, tmp_path, model):
    content = write_gguf(tmp_path / "tiny.gguf").read_bytes()
    hub.repositories[NAME] = Repository({**model, "tiny.Q8.gguf": content, "big/tiny.gguf": content + b"\0"})
    found, _ = get(tmp_path, f"{NAME}/tiny.Q8.gguf")
    assert found.path.name == "tiny.Q8.gguf" and found.path.read_bytes() == content
    assert get(tmp_path, f"{NAME}/big/tiny.gguf")[0].path.read_bytes() == content + b"\0"
    assert set(hub.asked("HEAD")) == {"tiny.Q8.gguf", "big/tiny.gguf"}
    assert "holds no x.gguf; its GGUF files are: big/tiny.gguf, tiny.Q8.gguf" in refusal(tmp_path, f"{NAME}/x.gguf")


@pytest.mark.parametrize("number", [1, 3])
def test_all_parts_of_a_gguf_in_parts(hub, tmp_path, model, number):
    parts = {f"q8/tiny-0000{part}-of-00003.gguf": b"GGUF" + bytes([part]) for part in (1, 2, 3)}
    hub.repositories[NAME] = Repository({**model, **parts, "q8/other-00001-of-00002.gguf": b"GGUF"})
    found, _ = get(tmp_path, f"{NAME}/q8/tiny-0000{number}-of-00003.gguf")
    assert found.path.name == "tiny-00001-of-00003.gguf"
    assert folder_files(found.path.parent) == {name.removeprefix("q8/"): content for name, content in parts.items()}
    assert set(found.digests) == set(folder_files(found.path.parent))
    assert "q8/other-00002-of-00002.gguf (of the 2 parts of a model) is not at" in refusal(
        tmp_path, f"{NAME}/q8/other-00001-of-00002.gguf"
    )


def test_repositories_without_weights_that_can_be_read(hub, tmp_path, model):
    del (files := dict(model))["model.safetensors"]
    cases = {
        "pickle": ({**files, "weights/pytorch_model.bin": b"\x80"}, "weights/pytorch_model.bin; pickle files can run"),
        "ggufs": ({"a.gguf": b"", "b.gguf": b"", "config.json": b"{}"}, "name the one to convert: maker/ggufs/a.gguf"),
        "nothing": (files, "holds no model.safetensors or model.safetensors.index.json"),
        "adapter": ({"adapter_model.safetensors": b""}, "holds a low-rank adapter, adapter_"),
        "data": ({"train.csv": b""}, "holds no config.json"),
    }
    for name, (content, message) in cases.items():
        hub.repositories[f"maker/{name}"] = Repository(content)
        assert message in refusal(tmp_path, f"maker/{name}")
    assert "refs/pr/N, listed on " + hub.endpoint + "/maker/pickle/discussions" in refusal(tmp_path, "maker/pickle")
    assert hub.asked("HEAD") == hub.asked("GET") == []


def test_names_and_paths(hub, tmp_path):
    assert parse_hub_name("a/b") == ("a/b", None) and parse_hub_name("a/b/c/d.gguf") == ("a/b", "c/d.gguf")
    names = ["meta-llama/Llama-3.2-1B", "a/b/c.gguf"]
    paths = ["./a/b", "../b", "/a/b", "~/b", "a", "a/b/c", "a/b/", "a/b.gguf", "a\\b/c", "", "smollm2-135m"]
    assert all(map(is_hub_name, names)) and not any(map(is_hub_name, paths))
    for name in ("a--b/c", "a/b..c", "a/-b", "a/b c", "a/b?x=1", "a/ü"):
        assert "HFValidationError" in refusal(tmp_path, name)
    assert hub.requests == []


def test_unknown_private_and_gated_repositories(hub, tmp_path, model, monkeypatch):
    hub.repositories[NAME] = Repository(model)
    private = f"{hub.endpoint} has no model maker/private, or it is private: set HF_TOKEN to a token that may read it"
    assert refusal(tmp_path, "maker/private") == private
    hub.repositories["maker/private"] = Repository(model, token=TOKEN)
    assert refusal(tmp_path, "maker/private") == private
    assert refusal(tmp_path, revision="v9") == f"{NAME} has no revision 'v9'"
    hub.repositories["maker/gated"] = Repository(model, gated=True)
    assert refusal(tmp_path, "maker/gated") == (
        f"maker/gated is gated: ask for access on {hub.endpoint}/maker/gated, then set HF_TOKEN to a token of that "
        "account"
    )
    monkeypatch.setenv("HF_TOKEN", TOKEN + "wrong")
    assert "or the token has no access to it" in refusal(tmp_path, "maker/private")
    hub.fault("GET listing", status(401, message="Invalid credentials in Authorization header"))
    assert "does not accept the token in HF_TOKEN" in refusal(tmp_path)


def test_the_token_goes_to_the_hub_alone(hub, tmp_path, model, monkeypatch, capfd):
    hub.repositories[NAME] = Repository(model, token=TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    found, lines = get(tmp_path)
    assert folder_files(found.path) == model
    for request in hub.requests:
        sent = {name.lower(): value for name, value in request.headers.items()}.get("authorization")
        assert sent == (None if "/blob/" in request.path else f"Bearer {TOKEN}")
    hub.fault("GET listing", status(403, message=f"{TOKEN} \x1b[2Jmay not"))
    assert refusal(tmp_path).endswith("***  [2Jmay not")
    assert TOKEN not in "".join(lines) + "".join(capfd.readouterr())


@pytest.mark.parametrize("code", [403, 429, 503])
def test_answers_that_refuse(hub, tmp_path, model, code):
    hub.repositories[NAME] = Repository(model)
    hub.fault("GET listing", status(code, message="for a reason"))
    line = refusal(tmp_path)
    assert f"answered {code} for /api/models/{NAME}/revision/main: for a reason" in line
    assert ("try again later" in line) == (code != 403)


def test_something_that_is_no_hub(hub, tmp_path):
    hub.fault("GET listing", other(b"<html>sign in</html>"), other(b"[]"), other(b'{"id": "a/b", "sha": "../../away"}'))
    address = f"{hub.endpoint} did not answer in JSON, so it is no hub; HF_ENDPOINT must be the address of one"
    assert refusal(tmp_path).startswith(address)
    assert "cannot be fetched from" in refusal(tmp_path)
    assert "does not say which commit" in refusal(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_hub_that_does_not_answer(hub, tmp_path, model, monkeypatch):
    hub.repositories[NAME] = Repository(model)
    monkeypatch.setattr(convert_hub, "TIMEOUT", 0.2)
    event = threading.Event()
    hub.fault("GET listing", stall(event))
    assert "ReadTimeout" in refusal(tmp_path)
    event.set()


def test_after_a_run_that_failed_only_the_rest_is_fetched(hub, tmp_path, sharded, no_waiting):
    hub.repositories[NAME] = Repository(sharded)
    hub.fault("GET model-00002-of-00003.safetensors", cut(1000), *[cut(0)] * 20)
    assert "model-00002" in (line := refusal(tmp_path)) or "RemoteProtocolError" in line
    hub.faults.clear()
    hub.requests.clear()
    found, _ = get(tmp_path)
    assert folder_files(found.path) == sharded
    assert hub.asked("GET") == []
    assert sum("/blob/" in request.path for request in hub.requests) == 2


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_what_does_not_match_the_listing_is_fetched_again_then_refused(hub, tmp_path, model, name, no_waiting):
    hub.repositories[NAME] = Repository(model)
    damaged = bytes([model[name][0] ^ 1]) + model[name][1:]
    hub.fault(f"GET {name}", other(damaged))
    found, lines = get(tmp_path / "once")
    assert folder_files(found.path) == model and any(f"{name} is damaged; fetching it again" in line for line in lines)
    hub.fault(f"GET {name}", other(damaged), other(damaged))
    assert f"{name}, as downloaded, has another hash than {hub.endpoint} says" in refusal(tmp_path / "twice")
    hub.fault(f"GET {name}", *[status(500, message="for a reason")] * 20)
    assert "answered 500 for" in refusal(tmp_path / "twice")
    hub.faults.clear()
    assert folder_files(get(tmp_path / "twice")[0].path) == model


def test_a_full_disk_is_seen_before_the_download(hub, tmp_path, model, monkeypatch):
    hub.repositories[NAME] = Repository(model)
    usage = "msrnn_jax.io.folders.shutil.disk_usage"
    free = len(model["model.safetensors"]) - 1
    found = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(usage, lambda path: found._replace(free=free))
    assert "are free on its disk" in refusal(tmp_path)
    assert "model.safetensors" not in hub.asked("HEAD")
    monkeypatch.setattr(usage, lambda path: found._replace(free=free + 1))
    get(tmp_path)
    monkeypatch.setattr(usage, lambda path: found._replace(free=0))
    get(tmp_path)  # needs nothing more


def test_a_disk_that_fills_up(hub, tmp_path, model, monkeypatch):
    hub.repositories[NAME] = Repository(model)

    def write(url, file, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(huggingface_hub.file_download, "http_get", write)
    assert f"the disk that holds {tmp_path}/cache/huggingface is full" in refusal(tmp_path)


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "unreachable", "failing"])
def test_without_the_hub_the_cache_serves(hub, tmp_path, model, monkeypatch, how):
    hub.repositories[NAME] = Repository(model)
    found, _ = get(tmp_path)
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif how == "unreachable":
        monkeypatch.setenv("HF_ENDPOINT", "http://me:secret@127.0.0.1:9")
    else:
        hub.fault("GET listing", *[status(503)] * 3)
    again, lines = get(tmp_path)
    assert again == found
    assert "taking what the cache holds" in lines[0] and "secret" not in lines[0]
    assert get(tmp_path, revision=found.commit)[0].path == found.path
    line = refusal(tmp_path, "maker/another")
    assert f"{tmp_path}/cache/huggingface does not hold it" in line and "secret" not in line
    assert line.startswith("HF_HUB_OFFLINE forbids") == (how == "HF_HUB_OFFLINE")


def test_offline_with_a_part_of_the_files_or_a_damaged_one(hub, tmp_path, sharded, monkeypatch):
    hub.repositories[NAME] = Repository(sharded)
    found, _ = get(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (damaged := found.path / "model-00001-of-00003.safetensors").resolve().write_bytes(b"\0")
    assert f"{damaged} is damaged" in refusal(tmp_path)
    (found.path / "model-00003-of-00003.safetensors").unlink()
    assert "model-00003-of-00003.safetensors (named by" in refusal(tmp_path)
    (found.path / "model.safetensors.index.json").unlink()
    assert f"the cache of {NAME} holds no model.safetensors or" in refusal(tmp_path)


def test_the_cache_of_other_programs_is_used(hub, tmp_path, model):
    hub.repositories[NAME] = Repository(model)
    for name in model:
        huggingface_hub.hf_hub_download(NAME, name, cache_dir=tmp_path / "cache/huggingface", endpoint=hub.endpoint)
    hub.requests.clear()
    assert folder_files(get(tmp_path)[0].path) == model
    assert hub.asked("GET") == []


def test_blobs_that_models_share_belong_to_the_folder(tmp_path):
    """huggingface_hub 2 keeps what came by its own storage protocol once for all models of a cache."""
    model = tmp_path / "models--maker--tiny"
    folder = model / "snapshots" / ("c" * 40)
    for place in (folder, model / "blobs", tmp_path / "blobs/ab", tmp_path / "elsewhere"):
        place.mkdir(parents=True)
    (tmp_path / "blobs/ab/abcd").write_text("{}")
    (model / "blobs/etag").symlink_to("../../blobs/ab/abcd")
    (folder / "config.json").symlink_to("../../blobs/etag")
    assert Folder(folder).json("config.json") == {}
    (tmp_path / "elsewhere/secret").write_text("{}")
    (folder / "other.json").symlink_to("../../../elsewhere/secret")
    with pytest.raises(ValueError, match="leads out of the folder"):
        Folder(folder).json("other.json")


CODE = """
import sys
from pathlib import Path
import typer
from convert.hub import fetch
from msrnn_jax.cli.errors import plain_errors

@plain_errors
def command():
    print(fetch.fetch(sys.argv[1], report=lambda line: print(line, file=sys.stderr, flush=True)).path)

app = typer.Typer(add_completion=False)
app.command()(command)
app(args=[])
"""


def start(name=NAME, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", CODE, name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        cwd=pathlib.Path(__file__).parents[3],
    )


def test_ctrl_c_in_a_download_leaves_nothing_half_done(hub, tmp_path, model, monkeypatch):
    hub.repositories[NAME] = Repository(model, token=TOKEN)
    event = threading.Event()
    hub.fault("GET model.safetensors", stall(event, after=1000))
    process = start(HF_TOKEN=TOKEN)
    deadline = time.monotonic() + 30
    while not any("/blob/" in request.path for request in hub.requests) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    event.set()
    assert process.returncode == 130 and errors.splitlines()[-1] == "interrupted"
    assert "Traceback" not in errors
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    lines = []
    folder = fetch(NAME, cache=tmp_path / "home/hub", report=lines.append).path  # where the process began
    assert folder.is_relative_to(tmp_path / "home/hub") and folder_files(folder) == model
    assert len(lines) == 2 and TOKEN not in "".join(lines) + errors


def test_a_mistyped_path_is_named(hub, tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hub.repositories[NAME] = Repository({**model, "config.json": b'{"model_type": "mamba"}'})
    for name in ("checkpoints/typo", "models/mine/typo.gguf"):
        with pytest.raises(ValueError, match=f"^there is no path {name} here, so it was looked for on the hub: http"):
            resolve(name, revision=None, cache=tmp_path / "cache", report=print)
    with pytest.raises(ValueError, match=f"^{NAME} cannot be converted"):
        resolve(NAME, revision=None, cache=tmp_path / "cache", report=print)


def test_what_was_compared_with_its_hash_is_not_read_once_more(hub, tmp_path, model, monkeypatch):
    hub.repositories[NAME] = Repository(model)
    read = []
    for module in (convert_hub, conversion):
        right = module.digest
        monkeypatch.setattr(
            module, "digest", lambda path, *more, right=right: read.append(path.name) or right(path, *more)
        )
    conversion.convert(NAME, tmp_path / "made", cache=tmp_path / "cache")
    assert read.count("model.safetensors") == 1 and "config.json" in read
    files = json.loads((tmp_path / "made/source.json").read_text())["files"]
    assert files == {name: hashlib.sha256(model[name]).hexdigest() for name in files} and "model.safetensors" in files
