"""The transcripts of every command print what stands in docs/."""

import pathlib
import re

import pytest
import transcripts

from msrnn_jax.cli.app import app

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "commands.md").read_text()


def test_every_command_has_a_transcript():
    shown = {word for exchange in transcripts.exchanges(PAGE) for word in re.findall(r"msrnn (\w+)", exchange.command)}
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert commands | {group.name for group in app.registered_groups} == shown


@pytest.mark.exhaustive
def test_transcripts(smollm2, tmp_path):
    """One after the other, in a folder of a new user; the conversion comes first."""
    transcripts.prepare(tmp_path)
    for command, output in transcripts.exchanges(PAGE):
        printed = transcripts.run(command, tmp_path)
        assert not transcripts.difference(output, printed), f"$ {command}\n{printed}"
    made = tmp_path / "checkpoints" / "smollm2-135m"
    assert (made / "config.json").read_bytes() == (smollm2 / "config.json").read_bytes()


@pytest.mark.parametrize(
    ("expected", "actual", "same"),
    [
        ("a 12.50 b\n", "a 12.52 b\n", True),
        ("a 12.50 b\n", "a 13.50 b\n", False),
        ("1,000 tokens", "1,001 tokens", True),
        ("hash 12ab34 x", "hash 12ab35 x", False),
        ("a\n...\nz\n", "a\nb\nc\nz\n", True),
        ("a\n...\nz\n", "a\nb\nc\ny\n", False),
        ("text 71f2...", "text 99", False),
        ("text ...", "text 99ab", True),
        ("a\n", "a\nb\n", False),
        ("a\nb\n", "a\n", False),
    ],
)
def test_what_counts_as_the_same(expected, actual, same):
    assert (not transcripts.difference(expected, actual)) == same
