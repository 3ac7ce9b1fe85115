"""How Sphinx builds the site (`make docs`). Neither the build nor a browser loads anything from the network."""

import ast
import dataclasses
import inspect
import pathlib
import re
import textwrap
from html import escape
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging

from msrnn_jax.policies.base import Policy, option_fields

project = "msrnn_jax"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
nitpicky = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "msrnn_jax"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = html_show_sourcelink = False
html_show_copyright = False
copybutton_exclude = ".linenos, .gp, .go"  # prompts and what commands print

# Docstrings are Markdown as far as they need it: code between backticks, equations between dollar signs.
default_role = "code"
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_typehints = "none"  # signatures are those of the source, see `signature_of_source`
python_maximum_signature_line_length = 80
nitpick_ignore_regex = [("py:.*", ".*")]


def signature_of_source(app: Sphinx, what: str, name: str, thing: Any, *_: Any) -> tuple[str, str | None] | None:
    """Arguments and results as the source has them, with the shapes of arrays."""
    if what == "class":
        if _with_comments(thing):
            return "", None  # fields say all
        if issubclass(thing, Policy) and thing is not Policy:
            return _policy_signature(thing), None
        if "__init__" not in vars(thing) or dataclasses.is_dataclass(thing):
            return None
        thing = thing.__init__
    elif what not in ("function", "method"):
        return None
    tree = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    tree.args.args = [each for each in tree.args.args if each.arg not in ("self", "cls")]
    result = "" if tree.returns is None or what == "class" else ast.unparse(tree.returns)
    return f"({ast.unparse(tree.args)})", result or None


def _policy_signature(thing: type[Policy]) -> str:
    """The options that it does not share with all others, or that have another default."""
    fields, common = option_fields(thing), option_fields(Policy)
    own = [name for name, field in fields.items() if name not in common or field.default != common[name].default]
    return f"({', '.join([f'{name}={fields[name].default!r}' for name in own] + ['**options'])})"


def fields_of_source(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """The fields of a class of arrays as the source has them: their comments say the shapes."""
    if what == "class" and _with_comments(thing):
        lines += ["", ".. code-block:: python", "   :class: fields", "", *(f"   {line}" for line in _fields(thing)), ""]


def _with_comments(thing: type) -> bool:
    return "Attributes:" not in (thing.__doc__ or "") and any("#" in line for line in _fields(thing))


def _fields(thing: type) -> list[str]:
    source = inspect.getsource(thing)
    body = ast.parse(textwrap.dedent(source)).body[0]
    assert isinstance(body, ast.ClassDef)
    lines = textwrap.dedent(source).splitlines()
    return [
        line[4:]
        for node in body.body
        if isinstance(node, ast.AnnAssign)
        for line in lines[node.lineno - 1 : node.end_lineno]
    ]


def equations(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Dollar signs become the role or, two of them around a line, the directive that they stand for."""
    text = re.sub(r"^\$\$([^$]+)\$\$$", lambda found: f".. math:: {found[1]}", "\n".join(lines), flags=re.M)
    text = re.sub(r"(?<![$\\`])\$([^$`]+)\$", lambda found: f":math:`{found[1]}`", text)
    lines[:] = text.split("\n")


def inline_drawings(app: Sphinx, page: nodes.document, name: str) -> None:
    """Drawings become part of the page, so that they take the colours of its theme."""
    for image in list(page.findall(nodes.image)):
        if image["uri"].endswith(".svg"):
            drawing = (pathlib.Path(app.srcdir) / image["uri"]).read_text(encoding="utf-8")
            said = f'<svg role="img" aria-label="{escape(image.get("alt", ""))}" '
            image.replace_self(nodes.raw("", drawing.replace("<svg ", said, 1), format="html"))


def visit_math(writer: Any, node: nodes.math | nodes.math_block) -> None:
    """Equations are MathML, which browsers draw by themselves."""
    block = isinstance(node, nodes.math_block)
    latex = node.astext().replace("\\arg", "\\operatorname{arg}")
    made = convert(latex, display="block" if block else "inline")
    if "\\" in made:
        logging.getLogger(__name__).warning("no MathML for all of %s", latex, location=node)
    writer.body.append(f'<div class="math">{made}</div>' if block else made)
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", inline_renderers=(visit_math, None), block_renderers=(visit_math, None))
    app.connect("autodoc-process-signature", signature_of_source)
    app.connect("autodoc-process-docstring", fields_of_source)
    app.connect("autodoc-process-docstring", equations)
    app.connect("doctree-resolved", inline_drawings)
