"""The transcripts of every page print what stands there."""

import re

import pages
import pytest
import transcripts

from msrnn_jax.cli.app import app

COMMANDS = "docs/commands.md"


def test_every_command_has_a_transcript():
    shown = {
        word
        for exchange in transcripts.exchanges(pages.PAGES[COMMANDS])
        for word in re.findall(r"msrnn (\w+)", exchange.command)
    }
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert commands | {group.name for group in app.registered_groups} == shown


@pytest.mark.exhaustive
@pytest.mark.parametrize("page", pages.pages_with("console"))
def test_transcripts(page, smollm2, tmp_path):
    """One after the other, in a folder of a new user, who has converted the model or does it on this page."""
    transcripts.prepare(tmp_path, pages.PAGES[page], smollm2)
    for command, output in transcripts.exchanges(pages.PAGES[page]):
        printed = transcripts.run(command, tmp_path)
        assert not transcripts.difference(output, printed), f"$ {command}\n{printed}"
    made = tmp_path / transcripts.CHECKPOINT
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
