"""No token without a row in the embedding comes in, wherever tokens do: a gather would take another row, or NaN."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tokenizers import Tokenizer
from toy import make_toy
from typer.testing import CliRunner

import msrnn_jax as ms
from experiments.finetune.__main__ import app as finetune
from experiments.generation.__main__ import app as generation
from experiments.language_modeling.__main__ import app as language_modeling
from experiments.needle.prompts import _encode
from experiments.understanding.prompts import Asker
from msrnn_jax.checkpoint.tokenizer import load_tokenizer
from msrnn_jax.cli.app import app
from msrnn_jax.generation.conversation import ChatModel, answer, begin_conversation
from msrnn_jax.tracing.lifetimes import follow, follow_oneshot, start_record
from msrnn_jax.tracing.trace import TraceSettings, freed_at

POLICY = ms.TOVA()
GOOD = np.asarray([3, 1], np.int32)


def model() -> tuple:
    return tiny.CONFIG, POLICY, tiny.params()


def empty() -> ms.MultiState:
    return ms.init_state(tiny.CONFIG, POLICY, 4)


def cell(tokens):
    return ms.MultiStateCell(*model(), 4)(ms.fork(empty(), 2), jnp.asarray(tokens))


ENTRIES = {
    "step": lambda tokens: ms.step(*model(), empty(), jnp.asarray(tokens[1])),
    "cell": cell,
    "extend": lambda tokens: ms.extend(*model(), empty(), tokens),
    "nll": lambda tokens: ms.nll(*model(), empty(), tokens, GOOD),
    "nll, targets": lambda tokens: ms.nll(*model(), empty(), GOOD, tokens),
    "prefill": lambda tokens: ms.prefill(*model(), empty(), tokens),
    "prefill at once": lambda tokens: ms.prefill(*model(), empty(), tokens, mode="oneshot"),
    "generate": lambda tokens: ms.generate(*model(), tokens[None], budget=4),
    "stream": lambda tokens: ms.stream(*model(), tokens[None], budget=4),
    "follow": lambda tokens: follow(*model(), empty(), start_record(empty(), 2), jnp.asarray(tokens)),
    "follow at once": lambda tokens: follow_oneshot(*model(), empty(), start_record(empty(), 2), jnp.asarray(tokens)),
    "freed_at": lambda tokens: freed_at(
        tiny.CONFIG, tiny.params(), tokens.tolist(), 1, TraceSettings(POLICY, 4, "stepwise", "absolute", 0), empty()
    ),
}


@pytest.mark.parametrize("wrong", [-1, tiny.CONFIG.vocab_size])
@pytest.mark.parametrize("entry", ENTRIES)
def test_the_library_refuses_tokens_without_a_row(entry, wrong):
    with pytest.raises(ValueError, match=f"holds the token {wrong}; it must be from 0 to 49"):
        ENTRIES[entry](np.asarray([3, wrong], np.int32))


@pytest.fixture(scope="module")
def padded(tmp_path_factory) -> str:
    """A checkpoint whose tokenizer has one token more than the model, as finetuned ones do that were padded."""
    path = pathlib.Path(make_toy(tmp_path_factory.mktemp("models") / "toy"))
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.add_special_tokens(["[PAD]"])
    assert tokenizer.token_to_id("[PAD]") == tiny.CONFIG.vocab_size
    tokenizer.save(str(path / "tokenizer.json"))
    return str(path)


COMMANDS = {
    "generate": (app, ["generate", "TOY", "--prompt", "ab[PAD]c"]),
    "generate --chat": (app, ["generate", "TOY", "--chat", "--prompt", "ab[PAD]c"]),
    "chat": (app, ["chat", "TOY"]),
    "perplexity": (app, ["perplexity", "TOY", "--text", "TEXT"]),
    "trace": (app, ["trace", "TOY", "--prompt", "ab[PAD]c"]),
    "trace --text": (app, ["trace", "TOY", "--text", "TEXT"]),
    "language_modeling": (language_modeling, ["TOY", "--data", "TEXT", "--segment", "8", "--budget", "4"]),
    "generation": (generation, ["TOY", "--data", "ROWS"]),
    "finetune": (finetune, ["TOY", "--data", "TEXT", "--length", "4", "--segment", "4", "--budget", "2"]),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_refuse_texts_with_tokens_that_the_model_does_not_know(command, padded, tmp_path):
    (tmp_path / "text.txt").write_text("ab[PAD]cd ef gh")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "ab[PAD]c"}) + "\n")
    places = {"TOY": padded, "TEXT": str(tmp_path / "text.txt"), "ROWS": str(tmp_path / "rows.jsonl")}
    program, arguments = COMMANDS[command]
    out = [] if program is app else ["--out", str(tmp_path / "out.jsonl")]
    arguments = [places.get(argument, argument) for argument in arguments]
    result = CliRunner().invoke(program, [*arguments, *out], input="ab[PAD]c\n", catch_exceptions=False)
    assert result.exit_code == 2, result.output
    assert "text with '[PAD]' holds the token 50; it must be from 0 to 49" in result.stderr
    assert "TEXT" not in arguments or f"{places['TEXT']}: text with" in result.stderr


def test_experiments_write_no_prompt_of_unknown_tokens(padded):
    tokenizer = load_tokenizer(padded)
    for encode in (
        lambda: _encode(tokenizer, "ab[PAD]", True),
        lambda: Asker(tokenizer, True)._reply("ab[PAD]"),
        lambda: tokenizer.reply("ab[PAD]", closed=True),
    ):
        with pytest.raises(ValueError, match=r"text with '\[PAD\]' holds the token 50"):
            encode()


def test_a_tokenizer_made_by_hand_is_caught_by_the_model(padded):
    """It knows no checkpoint, so what it writes is looked at where it is read."""
    tokenizer = load_tokenizer(padded)
    tokenizer.vocab_size = None
    chat = ChatModel(tiny.CONFIG, tiny.params(), tokenizer)
    for prompt in ("ab[PAD]", [1, 50]):
        with pytest.raises(ValueError, match="prompts holds the token 50"):
            ms.stream_text(*model(), tokenizer, [prompt], budget=4)
    with pytest.raises(ValueError, match="tokens holds the token 50"):
        next(answer(chat, begin_conversation(chat, POLICY, 4), "ab[PAD]", sampler=ms.Greedy()))
