"""Conversations as values, and the command that holds them."""

import dataclasses
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from toy import make_toy

import msrnn_jax as ms
from msrnn_jax.cli.chat import Talk
from msrnn_jax.generation.conversation import Answer, ChatModel, answer, begin_conversation, change_policy, held
from msrnn_jax.generation.sampling import Greedy, Sampler
from msrnn_jax.policies.registry import POLICIES

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> str:
    """Its turns are S or A for an assistant, the content, and the stop token, which is c."""
    path = make_toy(tmp_path_factory.mktemp("toy") / "toy")
    template = "{% for m in messages %}{{ 'A' if m['role'] == 'assistant' else 'S' }}{{ m['content'] }}c\n{% endfor %}"
    template += "{% if add_generation_prompt %}A{% endif %}"
    (pathlib.Path(path) / "chat_template.jinja").write_text(template)
    return path


@pytest.fixture(scope="module")
def model(toy) -> ChatModel:
    return ChatModel(tiny.SHALLOW, tiny.params(config=tiny.SHALLOW), ms.load_tokenizer(toy))


def say(model, conversation, message, **options):
    options = {"sampler": ms.Temperature(1.2), "max_new_tokens": 25, **options}
    *_, last = answer(model, conversation, message, **options)
    return last.conversation


def test_the_state_has_seen_what_the_template_makes_of_the_whole_conversation(model):
    """Turn by turn through the state, or all at once by `chat`: the same tokens were read."""
    policy, tokenizer = ms.TOVA(), model.tokenizer
    conversation = begin_conversation(model, policy, 8)
    turns, seen = [{"role": "system", "content": "be good"}], []
    for turn, message in enumerate(["hello there", "and now?", "x" * 200]):
        turns.append({"role": "user", "content": message})
        told = tokenizer.chat(turns)
        assert told[: len(seen)] == seen
        seed, most = turn, (25 if turn else 3)
        pieces = list(
            answer(
                model,
                conversation,
                message,
                sampler=ms.Temperature(1.2),
                seed=seed,
                max_new_tokens=most,
                system="be good",
            )
        )
        text = "".join(piece for piece, _ in pieces)
        conversation = pieces[-1].conversation
        turns.append({"role": "assistant", "content": text})
        seen = told + tokenizer.encode(text)
        seen += tokenizer.encode("c") if conversation.closed else []
        assert int(conversation.state.t) == len(seen)
        state = ms.init_state(model.config, policy, 8)
        padded = np.pad(np.asarray(seen, np.int32), (0, 512 - len(seen)))  # one shape, one program
        state, _ = ms.extend(model.config, policy, model.params, state, padded, length=len(seen))
        assert [tiny.held(layer) for layer in state.layers] == [tiny.held(layer) for layer in conversation.state.layers]
    assert conversation.turns == 3


def test_an_empty_system_message_takes_the_place_of_the_templates_own(model):
    first = say(model, begin_conversation(model, ms.TOVA(), 8), "hello", system="")
    assert first.messages[0] == {"role": "system", "content": ""}
    assert say(model, begin_conversation(model, ms.TOVA(), 8), "hello").messages[0]["role"] == "user"


def test_a_conversation_never_overflows_and_is_a_value(model):
    conversation = say(model, begin_conversation(model, ms.TOVA(), 8), "hello")
    kept = jax.tree.map(np.asarray, conversation.state)
    one, other = say(model, conversation, "go left"), say(model, conversation, "go right")
    assert one.state.t != other.state.t or not np.allclose(one.state.layers[0].keys, other.state.layers[0].keys)
    for ours, theirs in zip(jax.tree.leaves(conversation.state), jax.tree.leaves(kept), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for _ in range(6):
        one = say(model, one, "more " * 40)
    assert int(one.state.t) > 1200 and held(one.state) == [8]
    full = begin_conversation(model, ms.Full(), 40)
    with pytest.raises(ValueError, match="budget is 40, but full forgets nothing and must hold"):
        say(model, full, "hello " * 6)
    with pytest.raises(ValueError, match="the message is empty"):
        say(model, full, "  ")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Dice(Sampler):
    """Draws that depend on the key alone, of all tokens but those that end a text."""

    def __call__(self, logits, key):
        return jax.random.randint(key, (), 4, logits.shape[0], jnp.int32)


def test_every_turn_draws_anew_and_the_same_turn_the_same(model):
    def spoken(conversation, seed):
        *pieces, last = answer(model, conversation, "hello", sampler=Dice(), seed=seed, max_new_tokens=25)
        return "".join(piece for piece, _ in (*pieces, last)), last.conversation

    empty = begin_conversation(model, ms.TOVA(), 8)
    first, conversation = spoken(empty, 0)
    assert len(first) == 25 and spoken(empty, 0)[0] == first
    assert len(set(first)) > 10  # every token is drawn anew, too
    assert len({first, spoken(empty, 1)[0], spoken(conversation, 0)[0], spoken(conversation, 1)[0]}) == 4


def test_a_message_that_is_stopped_while_it_is_read_was_not_said(model):
    conversation = begin_conversation(model, ms.TOVA(), 8)
    asked = []
    pieces = list(
        answer(model, conversation, "a" * 300, sampler=Greedy(), stopped=lambda: len(asked) > 1 or asked.append(1))
    )
    assert pieces == [] and len(asked) == 2


@pytest.mark.exhaustive
def test_a_budget_that_windows_rule_out_changes_nothing(model):
    sliding = model._replace(config=model.config.replace(sliding_window=9))
    conversation = say(sliding, begin_conversation(sliding, ms.TOVA(), 8, positions="cache"), "hello " * 10)
    with pytest.raises(ValueError, match="there are 21 slots, but layer 0 has a sliding window of 9"):
        change_policy(sliding.config, conversation, ms.TOVA(), 20)
    assert say(sliding, change_policy(sliding.config, conversation, ms.H2O(), 7), "and").state.mode == "cache"


def test_the_policy_changes_in_mid_text(model):
    conversation = say(model, begin_conversation(model, ms.TOVA(), 8), "hello " * 10)
    smaller = change_policy(model.config, conversation, ms.H2O(), 5)
    expected = ms.compress(ms.TOVA(), conversation.state, 5)  # the old policy decides what goes
    for layer, other in zip(smaller.state.layers, expected.layers, strict=True):
        assert tiny.held(layer) == tiny.held(other) * 3
        assert layer.num_slots == 6
    kept = change_policy(model.config, say(model, begin_conversation(model, ms.H2O(), 12), "hello " * 10), ms.H2O(), 20)
    assert kept.budgets == [20] and all(layer.stats.max() > 1 for layer in kept.state.layers)  # sums go on
    protecting = say(model, begin_conversation(model, ms.TOVA(recent=6), 12), "hello " * 10)
    assert held(change_policy(model.config, protecting, ms.TOVA(), 4).state) == [4]
    with pytest.raises(ValueError, match="budget is 4, but tova:recent=6 protects"):
        change_policy(model.config, protecting, ms.TOVA(recent=6), 4)
    larger = say(model, change_policy(model.config, smaller, ms.Window(scope="head"), 20), "hello " * 10)
    assert held(larger.state) == [20] and larger.budgets == [20]


def test_a_template_that_rewrites_answers_is_refused(toy, tmp_path):
    tokenizer = ms.load_tokenizer(toy)
    tokenizer.template = "{% for m in messages %}{{ m['content'].upper() }}{% endfor %}"
    with pytest.raises(ValueError, match="chat template: it changes earlier answers"):
        tokenizer.reply("hello", closed=True)


def chat(toy, lines, *options, code=0):
    command = [sys.executable, "-m", "msrnn_jax", "chat", toy, "--budget", "12", "--max-new-tokens", "30", *options]
    result = subprocess.run(
        command, input="\n".join(lines) + "\n", capture_output=True, text=True, cwd=ROOT, timeout=240
    )
    assert result.returncode == code, result.stderr
    return result


@pytest.mark.exhaustive
def test_commands_use_the_state_as_a_value(toy, tmp_path):
    file, text = tmp_path / "talk.safetensors", tmp_path / "long.txt"
    text.write_text("hello there " * 30)
    lines = [
        "hello",
        f"/save {file}",
        "/fork here",
        "go on",
        "/state",
        "/back here",
        "go on",
        "/state",
        "/policy h2o 6",
    ]
    lines += ["go on", "/state", f"/load {file}", "go on", "/state", "/reset", "hello", f"/read {text}", "/state"]
    lines += [
        "/back there",
        "/load nowhere",
        "/policy lru",
        "/policy tova many",
        "/policy tova 2000000000",
        "/save",
        "/what",
        "/help",
        "/quit",
        "never",
    ]
    result = chat(toy, lines, "--temperature", "1", "--seed", "3", code=2)  # since some lines were wrong
    first, *rest = result.stdout.split(")\n")
    hello = first.rpartition("\n(")[0]
    assert first.endswith("12 held in each layer")
    states = [line for line in result.stdout.splitlines() if line.startswith("(")]
    assert len(states) == 11
    saved, forked, one, back, two, changed, three, loaded, four, reset, last = states
    assert saved == forked == back == loaded and one == two == four != saved
    answers = result.stdout.split(one + "\n")
    assert answers[0].split(forked + "\n")[-1] == answers[1].split(back + "\n")[-1]  # the same point, the same answer
    assert changed.startswith("(h2o, budget 6: ") and three.startswith("(h2o, budget 6: ")
    assert reset == "(tova, budget 12: 0 tokens seen, 0 held in each layer)"
    assert result.stdout.split(reset + "\n")[1].startswith(hello.split("\n(")[0])
    assert "12 held in each layer" in last and int(last.split()[3]) > 400
    known = ", ".join(POLICIES)
    assert [re.sub(r"(there is: ).*", r"\1...", line) for line in result.stderr.splitlines()] == [
        "error: fork 'there' is unknown; there are: here",
        "error: state 'nowhere' does not exist",
        f"error: policy 'lru' is unknown; it must be one of {known}, or module:Class, or file.py:Class",
        f"error: policy 'tova many' is unknown; it must be one of {known}, or module:Class, or file.py:Class",
        "error: this needs more memory than there is: ...",
        "error: /save needs an argument; /help lists commands",
        "error: command '/what' is unknown; /help lists commands",
    ]


def test_a_line_that_is_not_utf8_is_refused_and_the_next_one_read(toy):
    command = [sys.executable, "-m", "msrnn_jax", "chat", toy, "--budget", "12"]
    result = subprocess.run(command, input=b"hello \xff\n/state\n", capture_output=True, cwd=ROOT, timeout=240)
    assert result.returncode == 2
    assert result.stderr == b"error: the line is not UTF-8: invalid start byte at byte 6\n"
    assert result.stdout.endswith(b"(tova, budget 12: 0 tokens seen, 0 held in each layer)\n")


@pytest.mark.exhaustive
def test_ctrl_c_stops_the_answer_not_the_program(toy, tmp_path):
    """An answer that would take hours; after it is stopped, the next is given."""
    endless = tmp_path / "endless"
    shutil.copytree(toy, endless)
    (endless / "tokenizer_config.json").write_text('{"bos_token_id": null, "eos_token_ids": []}')
    command = [
        sys.executable,
        "-m",
        "msrnn_jax",
        "chat",
        str(endless),
        "--budget",
        "8",
        "--max-new-tokens",
        "20000000",
    ]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        assert process.stdin and process.stdout
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        os.read(process.stdout.fileno(), 1)  # it is writing
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        output, error = process.communicate(b"/state\n", timeout=60)
    assert (process.returncode, error) == (0, b"")
    assert b"8 held in each layer)" in output.splitlines()[-1]


def test_ctrl_c_while_a_message_is_read_takes_it_back(model, monkeypatch, capsys):
    """The command comes back once its thread has, and what that thread was doing leaves no trace."""
    reading = []

    def slowly(model, conversation, message, *, stopped):
        reading.append(True)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
        reading.clear()
        if not stopped():
            yield Answer("never", conversation)

    monkeypatch.setattr("msrnn_jax.generation.conversation.answer", slowly)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        talk = Talk(model, begin_conversation(model, ms.TOVA(), 8), {})
        talk._answer("hello")
    finally:
        signal.signal(signal.SIGINT, before)
    assert not reading and talk.conversation is talk.empty and capsys.readouterr().out == "\n"


def test_ctrl_c_at_the_prompt_asks_again(model, monkeypatch, capsys):
    typed = iter([KeyboardInterrupt(), " hello ", "", "again", EOFError()])

    def type_in(prompt):
        found = next(typed)
        if isinstance(found, BaseException):
            raise found
        return found

    monkeypatch.setattr("builtins.input", type_in)
    talk = Talk(model, begin_conversation(model, ms.TOVA(), 8), {})
    talk.interactive = True
    assert list(talk._lines()) == ["hello", "again"]
    assert "(ctrl-D or /quit leaves)" in capsys.readouterr().out
