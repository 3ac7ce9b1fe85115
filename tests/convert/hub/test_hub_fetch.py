"""Models from a hub on loopback: the needed files and no others, of one commit, whole, and every failure in words."""

import errno
import gzip
import hashlib
import json
import os
import pathlib
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
from loopback_hub import Repository, cut, endless, headed, listing, other, stall, status

from convert import conversion
from convert.folder import Folder
from convert.hub import fetch as convert_hub
from convert.hub.fetch import fetch
from convert.hub.guard import TEXTS
from convert.hub.name import is_hub_name, parse_hub_name
from convert.resolve import resolve
from msrnn_jax.io.units import spell_bytes

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
    "original/consolidated.00.pth": b"\x80\x04pickle",
    "original/tokenizer.model": b"sp",
    "modeling_own.py": b"raise SystemExit",
    "tokenizer.model": b"sp",
    "model.fp16.safetensors": b"half",
    "onnx/model.onnx": b"onnx",
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
        monkeypatch.setattr(convert_hub, "WAITS", (0.0, 0.0))
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
    assert "\n" not in line and TOKEN not in line
    return line


def partial_files(tmp_path):
    return [path for path in (tmp_path / "cache").rglob("*.incomplete")]


def test_the_needed_files_and_no_others_are_asked_for(hub, tmp_path, model):
    hub.repositories[NAME] = repository = Repository({**model, **OTHERS})
    found, lines = get(tmp_path)
    assert found[1:4] == (NAME, "main", repository.refs["main"])
    assert folder_files(found.path) == model
    assert sorted(hub.asked("GET")) == sorted(set(model) - {"model.safetensors"})
    assert set(hub.asked("HEAD")) == set(model)
    assert hub.asked("HEAD")[0] == "config.json" and hub.asked("HEAD")[-1] == "model.safetensors"
    commits = {request.path.split("/")[4] for request in hub.requests if request.file and request.method == "GET"}
    assert commits == {repository.refs["main"]}
    assert found.path.is_relative_to(tmp_path / "cache/huggingface")
    assert repository.refs["main"] in lines[0] and "config.json" in lines[0]
    assert any("downloading model.safetensors" in line for line in lines)


def test_a_second_run_downloads_nothing(hub, tmp_path, model):
    hub.repositories[NAME] = Repository(model)
    first, _ = get(tmp_path)
    hub.requests.clear()
    second, lines = get(tmp_path)
    assert second == first and hub.asked("GET") == []
    assert not any("/blob/" in request.path for request in hub.requests)
    assert not any("downloading" in line for line in lines)


def test_shards_are_those_that_the_index_names(hub, tmp_path, sharded):
    stray = {"model-00009-of-00009.safetensors": b"stray", "consolidated.safetensors": b"other"}
    hub.repositories[NAME] = Repository({**sharded, **stray, **OTHERS})
    found, lines = get(tmp_path)
    assert folder_files(found.path) == sharded and len(sharded) == 10
    assert sum("downloading" in line for line in lines) == 3 and "3 of 3" in lines[-1]


@pytest.mark.parametrize(
    "bad", ["../../etc/passwd.safetensors", "/abs.safetensors", "pytorch_model.bin", 3, "a\\b", "\x1b[2J.safetensors"]
)
def test_an_index_names_plain_safetensors_files(hub, tmp_path, sharded, bad):
    index = json.dumps({"weight_map": {"model.norm.weight": bad}}).encode()
    hub.repositories[NAME] = Repository({**sharded, "model.safetensors.index.json": index})
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
def test_revisions(hub, tmp_path, model, revision):
    hub.repositories[NAME] = repository = Repository(model)
    old = repository.commit("v1.0" if revision == "commit" else revision, {**model, "chat_template.jinja": b"old"})
    repository.commit("main", {**model, "chat_template.jinja": b"new"})
    asked = old if revision == "commit" else revision
    found, _ = get(tmp_path, revision=asked)
    assert found.revision == asked and found.commit == old
    assert (found.path / "chat_template.jinja").read_text() == "old"


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


@pytest.mark.parametrize("number", [1, 2, 3])
def test_all_parts_of_a_gguf_in_parts(hub, tmp_path, model, number):
    parts = {f"q8/tiny-0000{part}-of-00003.gguf": b"GGUF" + bytes([part]) for part in (1, 2, 3)}
    hub.repositories[NAME] = Repository({**model, **parts, "q8/other-00001-of-00002.gguf": b"GGUF"})
    named = f"{NAME}/q8/tiny-0000{number}-of-00003.gguf"
    found, _ = get(tmp_path, named)
    assert found.path.name == "tiny-00001-of-00003.gguf"
    assert folder_files(found.path.parent) == {name.removeprefix("q8/"): content for name, content in parts.items()}
    assert set(found.digests) == set(folder_files(found.path.parent))
    assert "q8/other-00002-of-00002.gguf (of the 2 parts of a model) is not at" in refusal(
        tmp_path, f"{NAME}/q8/other-00001-of-00002.gguf"
    )


def test_a_gguf_of_which_no_such_part_can_be(hub, tmp_path, model):
    hub.repositories[NAME] = Repository({**model, "a-00003-of-00002.gguf": b"GGUF"})
    assert get(tmp_path, f"{NAME}/a-00003-of-00002.gguf")[0].path.read_bytes() == b"GGUF"


def test_repositories_without_weights_that_can_be_read(hub, tmp_path, model):
    del (files := dict(model))["model.safetensors"]
    cases = {
        "pickle": ({**files, "pytorch_model.bin": b"\x80"}, "pytorch_model.bin; pickle files can run code"),
        "deep": ({**files, "weights/pytorch_model.bin": b"\x80"}, "as weights/pytorch_model.bin; pickle files can run"),
        "pkl": ({**files, "model.pkl": b"\x80"}, "model.pkl; pickle files can run code"),
        "ggufs": ({"a.gguf": b"", "b.gguf": b"", "config.json": b"{}"}, "name the one to convert: maker/ggufs/a.gguf"),
        "nothing": (files, "holds neither model.safetensors nor model.safetensors.index.json"),
        "adapter": (
            {"adapter_model.safetensors": b"", "adapter_config.json": b"{}"},
            "holds a low-rank adapter, adapter_",
        ),
        "data": ({"train.csv": b""}, "holds no config.json"),
    }
    for name, (content, message) in cases.items():
        hub.repositories[f"maker/{name}"] = Repository(content)
        assert message in refusal(tmp_path, f"maker/{name}")
    assert "refs/pr/N, listed on " + hub.endpoint + "/maker/pickle/discussions" in refusal(tmp_path, "maker/pickle")
    assert hub.asked("HEAD") == hub.asked("GET") == []


@pytest.mark.parametrize(
    "name",
    ["a--b/c", "a/b..c", "a/b.git", "a/-b", "a/b-", ".a/b", "a/" + "b" * 97, "a/b c", "a/ü", "org/name\n", "a/b?x=1"],
)
def test_malformed_names(hub, tmp_path, name):
    assert "is no name of the hub" in refusal(tmp_path, name).replace("\n", " ")
    assert hub.requests == []


def test_names_and_paths():
    assert parse_hub_name("a/b") == ("a/b", None) and parse_hub_name("a/b/c/d.gguf") == ("a/b", "c/d.gguf")
    names = ["meta-llama/Llama-3.2-1B", "a/b/c.gguf"]
    paths = ["./a/b", "../b", "/a/b", "~/b", "a", "a/b/c", "a/b/", "a/b.gguf", "a\\b/c", "", "smollm2-135m"]
    assert all(map(is_hub_name, names)) and not any(map(is_hub_name, paths))
    assert parse_hub_name("a/b/model-00001-of-00002.gguf").file == "model-00001-of-00002.gguf"
    with pytest.raises(ValueError, match="control characters"):
        parse_hub_name("a/b/a\x1b[2J.gguf")


def test_unknown_repositories_and_revisions(hub, tmp_path, model):
    hub.repositories[NAME] = Repository(model)
    line = refusal(tmp_path, "maker/nothing")
    assert line == (
        f"{hub.endpoint} has no model maker/nothing, or it is private: set HF_TOKEN to a token that may read it"
    )
    assert refusal(tmp_path, revision="v9") == f"{NAME} has no revision 'v9'"


def test_private_repositories_and_the_token(hub, tmp_path, model, monkeypatch, capfd):
    hub.repositories[NAME] = Repository(model, token=TOKEN)
    assert "set HF_TOKEN" in refusal(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN + "wrong")
    assert "or the token has no access to it" in refusal(tmp_path)
    hub.requests.clear()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    found, lines = get(tmp_path)
    assert folder_files(found.path) == model
    blobs = [request for request in hub.requests if "/blob/" in request.path]
    others = [request for request in hub.requests if "/blob/" not in request.path]
    assert blobs and all("Authorization" not in request.headers for request in blobs)
    assert all(request.headers["authorization"] == f"Bearer {TOKEN}" for request in map(_lowered, others))
    assert TOKEN not in "".join(lines) + "".join(capfd.readouterr())


def _lowered(request):
    return request._replace(headers={name.lower(): value for name, value in request.headers.items()})


def test_a_token_that_no_header_can_hold(hub, tmp_path, model, monkeypatch):
    hub.repositories[NAME] = Repository(model)
    monkeypatch.setenv("HF_TOKEN", TOKEN + "ü")
    assert refusal(tmp_path).startswith("HF_TOKEN ") and hub.requests == []


def test_a_token_that_the_hub_repeats_is_not_shown(hub, tmp_path, model, monkeypatch):
    hub.repositories[NAME] = Repository(model)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.fault("GET listing", status(403, message=f"{TOKEN} may not"))
    assert refusal(tmp_path).endswith(f"forbids this token to read {NAME}: *** may not")
    hub.fault("GET listing", status(503, **{"X-HF-Warning": f"topic; use no {TOKEN}"}))
    lines = []
    fetch(NAME, cache=tmp_path / "cache", report=lines.append)
    assert "note: use no ***" in lines and TOKEN not in "".join(lines)


def test_a_token_that_is_not_accepted(hub, tmp_path, model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.repositories[NAME] = Repository(model)
    hub.fault("GET listing", status(401, message="Invalid credentials in Authorization header"))
    assert "does not accept the token in HF_TOKEN" in refusal(tmp_path)


def test_gated_repositories(hub, tmp_path, model):
    hub.repositories[NAME] = Repository(model, gated=True)
    line = refusal(tmp_path)
    assert line == (
        f"{NAME} is gated: ask for access on {hub.endpoint}/{NAME}, then set HF_TOKEN to a token of that account"
    )


@pytest.mark.parametrize("code", [403, 429, 451, 500, 503])
def test_answers_that_refuse(hub, tmp_path, model, code):
    hub.repositories[NAME] = Repository(model)
    hub.fault("GET listing", *[status(code, message="for a reason")] * 3)
    line = refusal(tmp_path)
    known = {403: "forbids this token to read", 429: "is asked too often from here"}
    assert known.get(code, f"answered {code} for /api/models/{NAME}/revision/main: for a reason") in line
    assert line.endswith("try again later") == (code >= 500)
    assert len(hub.requests) == (3 if code >= 500 else 1)


def test_a_hub_that_stumbles_is_asked_again(hub, tmp_path, model, no_waiting):
    hub.repositories[NAME] = Repository(model)
    hub.fault("GET listing", status(503), status(500))
    hub.fault("HEAD config.json", status(502))
    hub.fault("GET tokenizer.json", status(500), status(504))
    hub.fault("GET model.safetensors", status(503), status(429, **{"Retry-After": "0"}))
    found, lines = get(tmp_path)
    assert folder_files(found.path) == model
    assert any("429" in line for line in lines)


def test_storage_that_fails(hub, tmp_path, model, no_waiting):
    hub.repositories[NAME] = Repository(model)
    hub.fault("GET model.safetensors", *[status(500)] * 20)
    assert "answered 500 for /blob/" in refusal(tmp_path)
    assert len(hub.faults["GET model.safetensors"]) == 17


def test_redirects_without_end(hub, tmp_path, model):
    hub.repositories[NAME] = Repository(model)
    location = f"{hub.endpoint}/api/models/{NAME}/revision/main?blobs=True"
    hub.fault("GET listing", *[status(302, Location=location)] * 100)
    assert "cannot be reached: Exceeded maximum allowed redirects" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"<html>sign in</html>", b"[]", b"{}", b'{"sha": 3, "siblings": 7}', b"null"])
def test_something_that_is_no_hub(hub, tmp_path, content):
    hub.fault("GET listing", *[other(content)] * 3)
    line = refusal(tmp_path)
    if content.startswith(b"<"):
        assert line == f"{hub.endpoint} did not answer in JSON, so it is no hub; HF_ENDPOINT must be the address of one"
    assert "cannot be fetched from" in line or "does not say which commit" in line or content.startswith(b"<")


def test_a_hub_that_is_not_there(hub, tmp_path, monkeypatch, no_waiting):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert refusal(tmp_path).startswith("http://127.0.0.1:9 cannot be reached: ")


def test_a_hub_that_does_not_answer(hub, tmp_path, model, monkeypatch):
    hub.repositories[NAME] = Repository(model)
    monkeypatch.setattr(convert_hub, "TIMEOUT", 0.2)
    event = threading.Event()
    hub.fault("GET listing", stall(event))
    start = time.monotonic()
    assert refusal(tmp_path).startswith(f"{hub.endpoint} did not answer in time")
    assert time.monotonic() - start < 5
    event.set()


def test_a_download_that_stalls_is_given_up(hub, tmp_path, model, monkeypatch, no_waiting):
    hub.repositories[NAME] = Repository(model)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    event = threading.Event()
    hub.fault("GET model.safetensors", *[stall(event)] * 20)
    assert "did not answer in time" in refusal(tmp_path)
    event.set()
    assert partial_files(tmp_path) == []


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub, tmp_path, model, monkeypatch, no_waiting):
    hub.repositories[NAME] = Repository(model)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)  # what is less than one of its chunks is lost
    hub.fault("GET model.safetensors", cut(1000), cut(500))
    found, lines = get(tmp_path)
    assert folder_files(found.path) == model
    asked = [request.headers.get("Range") for request in hub.requests if "/blob/" in request.path]
    assert asked == [None, "bytes=1000-", "bytes=1500-"]
    assert sum("Trying to resume" in line or "Error while downloading" in line for line in lines) == 2


def test_after_a_run_that_failed_only_the_rest_is_fetched(hub, tmp_path, sharded, no_waiting):
    hub.repositories[NAME] = Repository(sharded)
    hub.fault("GET model-00002-of-00003.safetensors", cut(1000), *[cut(0)] * 20)
    line = refusal(tmp_path)
    assert "cannot be reached" in line
    assert partial_files(tmp_path) == []
    hub.faults.clear()
    hub.requests.clear()
    found, _ = get(tmp_path)
    assert folder_files(found.path) == sharded
    assert hub.asked("GET") == [] and hub.asked("HEAD").count("model-00001-of-00003.safetensors") == 0
    assert sum("/blob/" in request.path for request in hub.requests) == 2


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_damaged_content_is_fetched_again_then_refused(hub, tmp_path, model, name):
    hub.repositories[NAME] = Repository(model)
    damaged = bytes([model[name][0] ^ 1]) + model[name][1:]
    hub.fault(f"GET {name}", other(damaged))
    found, lines = get(tmp_path / "once")
    assert folder_files(found.path) == model and any(f"{name} is damaged; fetching it again" in line for line in lines)
    hub.fault(f"GET {name}", other(damaged), other(damaged))
    assert f"{name}, as downloaded, has another hash than {hub.endpoint} says" in refusal(tmp_path / "twice")
    assert folder_files(get(tmp_path / "twice")[0].path) == model


def test_a_second_try_that_fails_says_why(hub, tmp_path, model, no_waiting):
    hub.repositories[NAME] = Repository(model)
    hub.fault("GET config.json", other(b"[" + model["config.json"][1:]))
    hub.fault("HEAD config.json", lambda handler, content: False, *[status(500, message="for a reason")] * 20)
    assert "answered 500 for" in (line := refusal(tmp_path)) and "for a reason" in line


def test_damage_in_the_cache_is_mended(hub, tmp_path, model):
    hub.repositories[NAME] = Repository(model)
    found, _ = get(tmp_path)
    weights = found.path / "model.safetensors"
    weights.resolve().write_bytes(b"\0" * weights.stat().st_size)
    assert folder_files(get(tmp_path)[0].path) == model


def test_a_full_disk_is_seen_before_the_download(hub, tmp_path, model, monkeypatch):
    hub.repositories[NAME] = Repository(model)
    usage = convert_hub.shutil.disk_usage(tmp_path)
    size = len(model["model.safetensors"])
    monkeypatch.setattr(
        convert_hub.shutil, "disk_usage", lambda path: usage._replace(free=size + convert_hub.SPARE - 1)
    )
    line = refusal(tmp_path)
    free = spell_bytes(size + convert_hub.SPARE - 1)
    assert f"needs {spell_bytes(size)} more in {tmp_path}/cache/huggingface, where {free} are free" in line
    assert "model.safetensors" not in hub.asked("HEAD")
    monkeypatch.setattr(convert_hub.shutil, "disk_usage", lambda path: usage._replace(free=size + convert_hub.SPARE))
    get(tmp_path)
    monkeypatch.setattr(convert_hub.shutil, "disk_usage", lambda path: usage._replace(free=0))
    get(tmp_path)  # needs nothing more


def test_a_disk_that_fills_up(hub, tmp_path, model, monkeypatch):
    hub.repositories[NAME] = Repository(model)

    def write(url, file, **options):
        file.write(b"\0")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(huggingface_hub.file_download, "http_get", write)
    assert f"the disk that holds {tmp_path}/cache/huggingface is full" in refusal(tmp_path)
    assert partial_files(tmp_path) == []


def test_a_cache_that_cannot_be_made(hub, tmp_path, model):
    hub.repositories[NAME] = Repository(model)
    (tmp_path / "cache").write_text("a file")
    assert f"{tmp_path}/cache" in refusal(tmp_path)


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "unreachable", "failing"])
def test_without_the_hub_the_cache_serves(hub, tmp_path, model, monkeypatch, how, no_waiting):
    hub.repositories[NAME] = Repository(model)
    found, _ = get(tmp_path)
    hub.requests.clear()
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    elif how == "unreachable":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    else:
        hub.fault("GET listing", *[status(503)] * 3)
    again, lines = get(tmp_path)
    assert again == found
    assert any("taking what the cache holds" in line for line in lines) == (how != "HF_HUB_OFFLINE")
    assert not any("the cache does not hold" in line for line in lines)
    assert len(hub.requests) == (3 if how == "failing" else 0)
    assert get(tmp_path, revision=found.commit)[0].path == found.path
    line = refusal(tmp_path, "maker/another")
    assert "HF_HUB_OFFLINE forbids" in line if how == "HF_HUB_OFFLINE" else True


def test_offline_with_a_part_of_the_files(hub, tmp_path, model, sharded, monkeypatch):
    hub.repositories[NAME] = Repository(sharded)
    found, _ = get(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (found.path / "generation_config.json").unlink()
    _, lines = get(tmp_path)
    assert any("the cache does not hold generation_config.json" in line for line in lines)
    (found.path / "model-00003-of-00003.safetensors").unlink()
    assert "model-00003-of-00003.safetensors (named by" in refusal(tmp_path)
    for path in found.path.glob("model*"):
        path.unlink()
    assert f"the cache holds no model.safetensors or model.safetensors.index.json of {found.commit}" in refusal(
        tmp_path
    )


def test_offline_damage_is_noticed(hub, tmp_path, model, monkeypatch):
    hub.repositories[NAME] = Repository(model)
    weights = get(tmp_path)[0].path / "model.safetensors"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    weights.resolve().write_bytes(b"\0" * weights.stat().st_size)
    assert f"{weights} is damaged" in refusal(tmp_path)


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
    print(fetch(sys.argv[1], report=lambda line: print(line, file=sys.stderr, flush=True)).path)

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


def test_a_command_uses_the_common_cache_and_draws_no_bars(hub, tmp_path, model):
    hub.repositories[NAME] = Repository(model, token=TOKEN)
    output, errors = (process := start(HF_TOKEN=TOKEN)).communicate(timeout=60)
    assert process.returncode == 0, errors
    assert pathlib.Path(output.strip()).is_relative_to(tmp_path / "home/hub")
    assert len(errors.splitlines()) == 2 and TOKEN not in output + errors and "%" not in errors
    output, errors = (process := start("maker/none", HF_TOKEN=TOKEN)).communicate(timeout=60)
    assert process.returncode == 2 and output == "" and errors.startswith("error: ") and len(errors.splitlines()) == 1


def test_ctrl_c_in_a_download_leaves_nothing_half_done(hub, tmp_path, model):
    hub.repositories[NAME] = Repository(model)
    event = threading.Event()
    hub.fault("GET model.safetensors", stall(event, after=1000))
    process = start(HF_HUB_DOWNLOAD_TIMEOUT="1")
    deadline = time.monotonic() + 30
    while not any("/blob/" in request.path for request in hub.requests) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    event.set()
    assert process.returncode == 130 and errors.splitlines()[-1] == "interrupted"
    assert "Traceback" not in errors
    assert not list((tmp_path / "home").rglob("*.incomplete"))
    large = hashlib.sha256(model["model.safetensors"]).hexdigest()
    assert not list((tmp_path / "home").rglob(large))


BAD_HASHES = ["../" * 12 + "1234", "../../../../outside/" + "0" * 20, "G" * 40, "0" * 39, "0" * 41, "a/" * 20]


@pytest.mark.parametrize("commit", BAD_HASHES)
def test_a_commit_that_is_a_path_is_refused(hub, tmp_path, model, commit):
    hub.repositories[NAME] = repository = Repository(model)
    info = {**listing(NAME, repository, repository.refs["main"]), "sha": commit}
    hub.fault("GET listing", other(json.dumps(info).encode()))
    assert "does not say which commit" in refusal(tmp_path)
    assert hub.asked("HEAD") == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("header", ["ETag", "X-Linked-ETag", "X-Repo-Commit"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_headers_that_are_paths_are_refused(hub, tmp_path, model, header, name):
    hub.repositories[NAME] = repository = Repository(model)
    (victim := tmp_path / "victim").write_text("mine")
    right = {"ETag": "0" * 40, "X-Repo-Commit": repository.refs["main"]}
    for bad in (f"../../../../{victim.name}", str(victim), "..", "0" * 41):
        for code in (200, 302):
            fault = headed({**right, header: bad, "Location": "http://127.0.0.1:9/blob"}, code)
            hub.faults[f"HEAD {name}"] = [fault] * 3
            lacks = (header, code) == ("ETag", 302)  # a redirection has a tag of its own, which is passed over
            assert ("does not have an ETag" if lacks else f"sent {bad!r} as") in refusal(tmp_path)
    assert victim.read_text() == "mine" and {path.name for path in tmp_path.iterdir()} <= {"victim", "cache"}
    assert list((tmp_path / "cache").rglob("victim*")) == []


def test_a_commit_that_is_a_path_beside_a_missing_file(hub, tmp_path, model):
    hub.repositories[NAME] = Repository(model)
    hub.fault("HEAD config.json", headed({"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "../../../../away"}, 404))
    assert "sent '../../../../away' as a commit" in refusal(tmp_path)
    assert list(tmp_path.rglob("away*")) == []


def test_a_hub_that_changes_its_mind_between_two_answers(hub, tmp_path, model):
    """The first tag is right, and the content damaged, so that the second one decides what is overwritten."""
    hub.repositories[NAME] = repository = Repository(model)
    (victim := tmp_path / "victim").write_text("mine")
    hub.fault("GET config.json", other(b"{" + model["config.json"][:-1]))
    right = headed({"ETag": repository_tag(model["config.json"]), "X-Repo-Commit": repository.refs["main"]})
    wrong = headed({"ETag": "../../../../victim", "X-Repo-Commit": repository.refs["main"]})
    hub.fault("HEAD config.json", right, right, wrong, wrong)
    assert "sent '../../../../victim' as the tag of a file" in refusal(tmp_path)
    assert victim.read_text() == "mine"


def repository_tag(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def test_weak_tags_are_tags(hub, tmp_path, model):
    hub.repositories[NAME] = repository = Repository(model)
    tag = repository_tag(model["config.json"])
    hub.fault("HEAD config.json", headed({"ETag": f'W/"{tag}"', "X-Repo-Commit": repository.refs["main"]}))
    assert get(tmp_path)[0].path.joinpath("config.json").resolve().name == tag


def test_files_of_another_commit_are_refused(hub, tmp_path, model):
    hub.repositories[NAME] = Repository(model)
    tag = repository_tag(model["config.json"])
    hub.fault("HEAD config.json", headed({"ETag": tag, "X-Repo-Commit": "c" * 40}))
    assert "sent config.json of another commit than" in refusal(tmp_path)


def test_nothing_outside_the_cache_is_deleted(hub, tmp_path, model):
    hub.repositories[NAME] = Repository(model)
    config = get(tmp_path)[0].path / "config.json"
    (outside := tmp_path / "outside").write_text("mine")
    config.unlink()
    config.symlink_to(outside)
    damaged = other(b"[" + model["config.json"][1:])
    hub.fault("GET config.json", *[damaged] * 3)
    assert "has another hash" in refusal(tmp_path)
    assert outside.read_text() == "mine"


@pytest.mark.parametrize("name", ["listing", "config.json", "model.safetensors"])
def test_answers_without_end_are_left(hub, tmp_path, model, monkeypatch, name):
    monkeypatch.setattr("convert.hub.guard.TEXTS", 2**22)
    hub.repositories[NAME] = Repository(model)
    hub.fault(f"GET {name}", endless())
    limit = 2**22 if name == "listing" else len(model[name])
    what = "what must be a short text" if name == "listing" else name
    assert refusal(tmp_path) == f"{hub.endpoint} sent more than {limit} bytes of {what}"
    assert hub.sent < limit + 2**26  # what lay between the two in buffers
    assert partial_files(tmp_path) == []


def test_pieces_add_up_to_no_more_than_the_whole(hub, tmp_path, model, monkeypatch, no_waiting):
    hub.repositories[NAME] = Repository(model)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    size = len(model["model.safetensors"])

    def again(handler, content):
        assert handler.headers["Range"] == "bytes=1000-"
        handler.answer(206, content, {"Content-Range": f"bytes 1000-{size - 1}/{size}"})
        return True

    hub.fault("GET model.safetensors", cut(1000), again)
    assert refusal(tmp_path) == f"{hub.endpoint} sent more than {size} bytes of model.safetensors"


def test_compressed_answers_are_refused(hub, tmp_path, model):
    hub.repositories[NAME] = repository = Repository(model)
    text = gzip.compress(json.dumps(listing(NAME, repository, repository.refs["main"])).encode())
    assert get(tmp_path)[0] and hub.requests[0].headers["Accept-Encoding"] == "identity"

    def packed(handler, content):
        handler.answer(200, text, {"Content-Encoding": "gzip"})
        return True

    hub.fault("GET listing", packed)
    assert "in the encoding 'gzip', which was not asked for" in refusal(tmp_path)


def test_texts_that_do_not_fit_into_memory(hub, tmp_path, model):
    hub.repositories[NAME] = repository = Repository(model)
    info = listing(NAME, repository, repository.refs["main"])
    next(entry for entry in info["siblings"] if entry["rfilename"] == "tokenizer.json")["size"] = TEXTS + 1
    hub.fault("GET listing", other(json.dumps(info).encode()))
    assert refusal(tmp_path) == f"{NAME}: tokenizer.json is of 64 MiB; at most 64 MiB are read"
    assert hub.asked("HEAD") == []


def test_sizes_are_compared_where_no_hash_is_known(hub, tmp_path, model):
    hub.repositories[NAME] = repository = Repository(model)
    info = listing(NAME, repository, repository.refs["main"])
    entry = next(entry for entry in info["siblings"] if entry["rfilename"] == "config.json")
    entry.pop("blobId")
    entry["size"] += 1
    hub.fault("GET listing", *[other(json.dumps(info).encode())] * 2)
    assert "config.json, as downloaded, has another" in refusal(tmp_path)
    entry["size"] -= 1
    hub.faults.clear()
    hub.fault("GET listing", other(json.dumps(info).encode()))
    assert folder_files(get(tmp_path)[0].path) == model


def test_the_clients_of_the_program_come_back(hub, tmp_path, model):
    hub.repositories[NAME] = Repository(model)
    before = huggingface_hub.utils._http._GLOBAL_CLIENT_FACTORY
    get(tmp_path)
    assert huggingface_hub.utils._http._GLOBAL_CLIENT_FACTORY is before
    assert huggingface_hub.get_session().event_hooks["response"] == []


def test_an_empty_endpoint_is_none(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "")
    monkeypatch.setattr(constants, "ENDPOINT", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert refusal(tmp_path).endswith("forbids to ask https://huggingface.co for it")


def test_a_password_in_the_endpoint_is_not_shown(hub, tmp_path, model, monkeypatch):
    hub.repositories[NAME] = Repository(model)
    address = hub.endpoint.replace("//", "//me:se@cret@").replace("se@cret", "se%40cret")
    monkeypatch.setenv("HF_ENDPOINT", address)
    assert refusal(tmp_path, "maker/none").startswith(f"{hub.endpoint} has no model maker/none")
    hub.fault("GET model.safetensors", cut(10))
    found, lines = get(tmp_path)
    assert folder_files(found.path) == model and "cret" not in "".join(lines)
    monkeypatch.setenv("HF_ENDPOINT", "http://me:secret@127.0.0.1:9")
    assert "secret" not in refusal(tmp_path / "other") and "me" not in refusal(tmp_path / "other").split(" ")[0]


def test_what_a_hub_says_moves_no_cursor(hub, tmp_path, model):
    hub.repositories[NAME] = Repository({**model, "a\x1b[2J.gguf": b"GGUF"})
    hub.fault("GET listing", status(403, message="\x1b[2Jno\x07"))
    assert refusal(tmp_path).isprintable()
    assert refusal(tmp_path, f"{NAME}/b.gguf").isprintable()


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
