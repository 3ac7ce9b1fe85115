"""Draws the pictures of the site that are no measurements: `python docs/pictures.py` writes docs/pictures/*.svg.

They are in the colours of the page that they stand on, light or dark (see `inline_drawings` in conf.py); elsewhere in
those that the reader's system prefers. They are narrow, so that their words can be read on a telephone.
"""

import pathlib
from html import escape

FOLDER = pathlib.Path(__file__).parent / "pictures"
STYLE = """
.drawing{color:#1f2328;font:15px system-ui,sans-serif}
@media(prefers-color-scheme:dark){.drawing{color:#d1d7e0}}
.drawing text{fill:currentColor;text-anchor:middle;dominant-baseline:central}
.drawing .small{font-size:13px}
.drawing .left{text-anchor:start}
.drawing .line{stroke:currentColor;fill:none;stroke-width:1.3}
.drawing .faint{stroke:currentColor;fill:none;opacity:.35}
.drawing .free{stroke:currentColor;fill:none;opacity:.5;stroke-dasharray:4 3}
.drawing .held{fill:#3b82f6;fill-opacity:.3;stroke:#3b82f6}
.drawing .new{fill:#f59e0b;fill-opacity:.4;stroke:#d98300}
.drawing .box{fill:#8b949e;fill-opacity:.2;stroke:currentColor}
.drawing .head{fill:currentColor}
"""


class Drawing:
    """SVG elements, one after the other."""

    def __init__(self, width: int, height: int):
        self.width, self.height = width, height
        self.parts: list[str] = []

    def rect(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        self.parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="4"/>')

    def text(self, x: float, y: float, words: str, kind: str = "") -> None:
        marked = f' class="{kind}"' if kind else ""
        self.parts.append(f'<text{marked} x="{x}" y="{y}">{escape(words)}</text>')

    def arrow(self, x: float, y: float, to_x: float, to_y: float) -> None:
        """A straight arrow, to the right or upwards."""
        self.parts.append(f'<path class="line" d="M{x} {y}L{to_x} {to_y}"/>')
        back = "l-7 -4v8z" if y == to_y else "l-4 7h8z"
        self.parts.append(f'<path class="head" d="M{to_x} {to_y}{back}"/>')

    def cross(self, x: float, y: float, size: float) -> None:
        both = f"l{2 * size} {2 * size}m0 {-2 * size}l{-2 * size} {2 * size}"
        self.parts.append(f'<path class="line" d="M{x - size} {y - size}{both}"/>')

    def svg(self) -> str:
        body = "\n".join(self.parts)
        size = f'width="{self.width}" height="{self.height}" viewBox="0 0 {self.width} {self.height}"'
        return (
            f'<svg class="drawing" xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{STYLE}</style>\n{body}\n</svg>\n'
        )


def state() -> Drawing:
    """The recurrence: a state of five slots, of which four are held, goes through two steps."""
    drawing = Drawing(480, 262)
    states = [
        ["The", "sea", "is", "salt", None],
        ["The", "sea", None, "salt", "y"],
        ["The", "sea", ".", None, "y"],
    ]
    new = [None, "y", "."]
    width, left, gap = 72, 6, 198
    for number, slots in enumerate(states):
        x = left + number * gap
        drawing.text(x + width / 2, 42, "state", "small")
        for place, word in enumerate(slots):
            y = 56 + 30 * place
            kind = "free" if word is None else "new" if word == new[number] else "held"
            drawing.rect(x, y, width, 26, kind)
            drawing.text(x + width / 2, y + 13, "free" if word is None else word, "small" if word is None else "")
    for number, token in enumerate(new[1:]):
        x = left + number * gap + width
        drawing.arrow(x + 4, 130, x + 30, 130)
        drawing.rect(x + 32, 108, 62, 44, "box")
        drawing.text(x + 63, 130, "step")
        drawing.arrow(x + 96, 130, x + 122, 130)
        drawing.arrow(x + 63, 226, x + 63, 156)
        drawing.text(x + 63, 242, f"token “{token}”")
        drawing.arrow(x + 63, 106, x + 63, 30)
        drawing.text(x + 63, 14, "logits")
    return drawing


def orders() -> Drawing:
    """What depends on what, and the two orders in which it is computed."""
    drawing = Drawing(480, 238)
    for half, title in enumerate(("step: token by token", "extend: layer by layer")):
        left = 14 + 240 * half
        drawing.text(left + 112, 12, title)
        for token in range(4):
            if not half:
                drawing.rect(left + 10 + 54 * token, 28, 44, 164, "held" if token % 2 == 0 else "new")
            drawing.text(left + 32 + 54 * token, 222, f"x{'₁₂₃₄'[token]}")
            drawing.arrow(left + 32 + 54 * token, 211, left + 32 + 54 * token, 186)
        for layer in range(3):
            y = 166 - 56 * layer
            if half:
                drawing.rect(left + 6, y - 21, 214, 42, "held" if layer % 2 == 0 else "new")
            for token in range(4):
                x = left + 32 + 54 * token
                order = 3 * token + layer + 1 if not half else layer + 1
                drawing.rect(x - 14, y - 14, 28, 28, "box")
                drawing.text(x, y, str(order), "small")
                if token < 3:
                    drawing.arrow(x + 16, y, x + 38, y)
                if layer < 2:
                    drawing.arrow(x, y - 16, x, y - 40)
    return drawing


def masks() -> Drawing:
    """Which candidates each token of a chunk sees: five slots, of which one is free, and five new tokens."""
    gone = [1, 3, 5, 0, 6]  # the candidate that is freed after each token
    size, left, top = 36, 74, 52
    drawing = Drawing(480, 300)
    drawing.text(left + 2.5 * size, 12, "5 slots")
    drawing.text(left + 7.5 * size, 12, "5 new tokens")
    names = ["a", "b", "c", "d", "", "1", "2", "3", "4", "5"]
    held = {0, 1, 2, 3}
    for candidate, name in enumerate(names):
        drawing.text(left + size * (candidate + 0.5), 36, name, "small")
    for row in range(5):
        y = top + size * row
        drawing.text(4, y + size / 2, f"token {row + 1}", "small left")
        held.add(5 + row)
        for candidate in range(10):
            x = left + size * candidate
            kind = "new" if candidate == 5 + row else "held" if candidate in held else "faint"
            drawing.rect(x + 2, y + 2, size - 4, size - 4, kind)
        drawing.cross(left + size * (gone[row] + 0.5), y + size / 2, 7)
        held.discard(gone[row])
    y = top + 5 * size + 26
    drawing.text(4, y, "held", "small left")
    for candidate in sorted(held):
        drawing.rect(left + size * candidate + 2, y - 16, size - 4, size - 4, "held")
        drawing.text(left + size * (candidate + 0.5), y, names[candidate], "small")
    drawing.text(240, 286, "a cross: the policy frees it after this token", "small")
    return drawing


DRAWINGS = {"state": state, "orders": orders, "masks": masks}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        (FOLDER / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
