"""A traced text in the terminal: coloured where there is colour, marked below the line where there is none."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from msrnn_jax.text.display import decimals, visible

PALE, STRONG = (222, 240, 241), (72, 178, 190)  # backgrounds of what is held by few and by all; black is read on both
MARKS = ".:+#"  # up to a quarter, a half, three quarters and all


def show(console: Console, record: dict[str, Any], layer: int | None = None) -> None:
    """Prints the text and what every layer holds of it, or every token of one layer."""
    layers = range(len(record["freed"])) if layer is None else [layer]
    rows = [row for index in layers for row in record["freed"][index]]
    held = shares(rows)
    if console.color_system is None:
        for line in marked_lines(record["texts"], held, console.width):
            console.print(Text(line), no_wrap=True, crop=False)
    else:
        console.print(_coloured(record, held))
    console.print(Text(_legend(record, len(rows), layer, console.color_system is not None), "dim"))
    console.print()
    console.print(_layers(record) if layer is None else _tokens(record, layer))


def shares(rows: Sequence[Sequence[int | None]]) -> list[float]:
    """How much of some rows holds each token at the end, from 0 to 1."""
    return [sum(t is None for t in column) / len(rows) for column in zip(*rows, strict=True)]


def marked_lines(texts: Sequence[str], held: Sequence[float], width: int) -> list[str]:
    """The text in lines of at most `width` cells, each with a line of marks below it that say how much is held."""
    lines: list[str] = []
    text, marks, broken = "", "", False

    def end(full: bool = False) -> None:
        nonlocal text, marks, broken
        lines.extend([text.rstrip(), marks.rstrip()])
        text, marks, broken = "", "", full

    for word in _words(texts, held):
        if text and cell_len(text + "".join(character for character, _ in word).rstrip()) > width:
            end(full=True)
        for character, mark in word:
            if character == "\n":
                end()
                continue
            if cell_len(text) + cell_len(character) > width:
                end(full=True)
            if broken and not text and character == " ":
                continue
            text += character
            marks += mark * cell_len(character)
    if text:
        end()
    return lines


def _words(texts: Sequence[str], held: Sequence[float]) -> list[list[tuple[str, str]]]:
    """Characters and their marks, in groups that are not parted: a token that begins with a blank begins one."""
    words: list[list[tuple[str, str]]] = [[]]
    for text, share in zip(texts, held, strict=True):
        blank, rest = _parted(visible(text).replace("\t", " ") or "·")
        if blank or rest[0].isspace():
            words.append([])
        words[-1] += [(character, " ") for character in blank] + [(character, _mark(share)) for character in rest]
    return words


def _parted(piece: str) -> tuple[str, str]:
    """The blank before a word, which is not marked so that words stand apart, and the rest."""
    return (" ", piece[1:]) if piece[:1] == " " and piece.strip() else ("", piece)


def _mark(share: float) -> str:
    return MARKS[min(3, int(share * 4 - 1e-9))] if share else " "


def _coloured(record: dict[str, Any], held: Sequence[float]) -> Text:
    text = Text()
    for position, (piece, share) in enumerate(zip(record["texts"], held, strict=True)):
        made = "underline " if position >= record["prompt_tokens"] else ""
        red, green, blue = (round(pale + share * (strong - pale)) for pale, strong in zip(PALE, STRONG, strict=True))
        blank, rest = _parted(visible(piece) or "·")
        text.append(blank)
        text.append(rest, made + (f"black on rgb({red},{green},{blue})" if share else "dim"))
    return text


def _legend(record: dict[str, Any], rows: int, layer: int | None, colour: bool) -> str:
    place = f"{rows} " + ("layers" if len(record["freed"]) == rows else "rows (layers by KV heads)")
    if layer is not None:
        place = f"layer {layer}" + (f" ({rows} KV heads)" if rows > 1 else "")
    scale = "the more of {} hold a token in the end, the stronger its colour; dim: none"
    if not colour:
        scale = "below each line, how many of {} hold a token in the end: . to a quarter, : a half, + three quarters, #"
    made = record["generated_tokens"]
    more = f"; the last {made} tokens, underlined where there is colour, are generated" if made else ""
    return scale.format(place) + more


def _layers(record: dict[str, Any]) -> Table:
    table = _table("layer", "budget", "held", "oldest held", "recent", "mean life")
    for row in record["layers"]:
        held = sum(row["held"]) / len(row["held"])
        recent = "-" if row["recent"] is None else f"{row['recent']:.0%}"
        oldest = "-" if row["oldest"] is None else str(row["oldest"])
        numbers = (str(row["layer"]), str(row["budget"]), decimals(held, 0), oldest, recent)
        table.add_row(*numbers, decimals(row["mean_life"], 1))
    table.caption = "recent: share of the held that a window would hold; mean life: of the freed, in steps"
    return table


def _tokens(record: dict[str, Any], layer: int) -> Table:
    rows = record["freed"][layer]
    heads = [f"freed by head {head}" for head in range(len(rows))] if len(rows) > 1 else ["freed after step"]
    table = _table("token", "text", *heads)
    table.columns[1].justify, table.columns[1].overflow = "left", "fold"
    for position, text in enumerate(record["texts"]):
        steps = ("held" if row[position] is None else str(row[position]) for row in rows)
        shown = visible(text).replace("\n", "").replace("\t", "") or "·"
        table.add_row(str(position), Text(shown), *steps)
    return table


def _table(*columns: str) -> Table:
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    for column in columns:
        made.add_column(column, justify="right")
    return made
