"""Faults that can be seeded into the code, and a sample of them: cosmic-ray's, less those that say nothing of tests."""

import ast
import fnmatch
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cosmic_ray.plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

# Of the replacements of an operator those that a slip of the pen makes: all of them would drown other kinds of fault.
_BINARY = "Add_Sub Sub_Add Mul_FloorDiv Mul_Add Div_Mul FloorDiv_Mul FloorDiv_Div Mod_FloorDiv Pow_Mul"
_BINARY += " BitOr_BitAnd BitAnd_BitOr BitXor_BitAnd RShift_LShift LShift_RShift"
_COMPARISON = "Eq_NotEq NotEq_Eq Lt_LtE Lt_GtE LtE_Lt LtE_Gt Gt_GtE Gt_LtE GtE_Gt GtE_Lt Is_IsNot IsNot_Is"
_OTHERS = "AddNot ReplaceTrueWithFalse ReplaceFalseWithTrue ReplaceAndWithOr ReplaceOrWithAnd ZeroIterationForLoop"
_OTHERS += " ReplaceBreakWithContinue ReplaceContinueWithBreak ExceptionReplacer NumberReplacer RemoveDecorator"
OPERATORS = [
    *(f"ReplaceBinaryOperator_{name}" for name in _BINARY.split()),
    *(f"ReplaceComparisonOperator_{name}" for name in _COMPARISON.split()),
    *(f"ReplaceUnaryOperator_Delete_{name}" for name in ("USub", "Invert", "Not")),
    *_OTHERS.split(),
]


class Site(NamedTuple):
    """A place where an operator applies."""

    path: str  # from the root of the tree
    line: int  # 1 is the first
    text: str  # of the line
    copy: int  # lines before it in the file that read the same
    operator: str
    place: int  # among those on the line where the operator applies
    occurrence: int  # among those in the file


class Mutant(NamedTuple):
    """A fault, and what it makes of the line."""

    site: Site
    becomes: str  # the line with the fault, "" where it is gone
    source: str  # of the file with the fault

    @property
    def name(self) -> str:
        """The same for as long as the line reads the same, wherever in its file it stands."""
        site = self.site
        return _hash(site.path, site.text, site.copy, site.operator, site.place)[:10]

    def __str__(self) -> str:
        site = self.site
        kind = site.operator.removeprefix("Replace")
        return f"{site.path}:{site.line} {kind} {self.name}\n  - {site.text}\n  + {self.becomes}"


def draw(
    root: Path, packages: Sequence[str], *, count: int, seed: int, core: Sequence[str] = (), share: float = 0.0
) -> list[Mutant]:
    """Mutants of so many lines, all lines alike; the same ones for the same tree and seed.

    Lines are ranked by a hash of what they say. Those that an edit does not touch thus keep their mutants.

    Args:
      packages: folders whose files are mutated.
      core: patterns of paths that `share` of the mutants are drawn from, at least.
    """
    lines = defaultdict(list)
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            for site in sites(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")):
                lines[site.path, site.line].append(site)
    ranked = sorted(
        lines.values(), key=lambda found: _hash(seed, Path(found[0].path).name, found[0].text, found[0].copy)
    )
    wanted = round(count * share) if core else 0
    drawn = list(_first(root, (found for found in ranked if is_core(found[0].path, core)), wanted, seed))
    taken = {(mutant.site.path, mutant.site.line) for mutant in drawn}
    rest = (found for found in ranked if (found[0].path, found[0].line) not in taken)
    return sorted([*drawn, *_first(root, rest, count - len(drawn), seed)])


def is_core(path: str, core: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(path, pattern) for pattern in core)


def sites(path: str, source: str) -> Iterator[Site]:
    """All places of a file where a fault can be seeded.

    Left out are annotations, `A | B` as a type, and messages of errors: what is wrong there ends the first import, or
    changes a text.
    """
    lines = source.splitlines()
    seen, copies = Counter(), []
    for line in map(str.strip, lines):
        copies.append(seen[line])
        seen[line] += 1
    silent = list(_silent(ast.parse(source)))
    nodes = list(ast_nodes(get_ast(source)))
    for name in OPERATORS:
        operator = cosmic_ray.plugins.get_operator(f"core/{name}")()
        places = Counter()
        found = (start for node in nodes for start, _ in operator.mutation_positions(node))
        for occurrence, start in enumerate(found):
            if any(first <= start < last for first, last in silent):
                continue
            text = lines[start[0] - 1].strip()
            yield Site(path, start[0], text, copies[start[0] - 1], name, places[start[0]], occurrence)
            places[start[0]] += 1


def mutate(source: str, site: Site) -> Mutant | None:
    """The mutant of a file, None where the fault is no Python or changes nothing."""
    mutated = mutate_code(source, cosmic_ray.plugins.get_operator(f"core/{site.operator}")(), site.occurrence)
    try:
        if mutated is None or ast.dump(ast.parse(mutated)) == ast.dump(ast.parse(source)):
            return None
    except SyntaxError:
        return None
    before, after = source.splitlines(), mutated.splitlines()
    whole = len(before) == len(after)  # else a decorator is gone
    return Mutant(site, re.sub(r"\s+", " ", after[site.line - 1]).strip() if whole else "", mutated)


def statement(source: str, line: int) -> range:
    """Lines of the statement that a line belongs to, of a compound one those before its body."""
    span = range(line, line + 1)
    for node in ast.walk(ast.parse(source)):  # outer ones come first
        if isinstance(node, ast.stmt | ast.excepthandler | ast.match_case):
            body = getattr(node, "body", None)
            inner = node.pattern if isinstance(node, ast.match_case) else node
            decorators = getattr(node, "decorator_list", [])
            first = min([inner.lineno, *(decorator.lineno for decorator in decorators)])
            last = max(first, body[0].lineno - 1) if body else inner.end_lineno
            span = range(first, last + 1) if first <= line <= last else span
    return span


def _first(root: Path, ranked: Iterable[list[Site]], count: int, seed: int) -> Iterator[Mutant]:
    for found in ranked:
        if count <= 0:
            return
        source = (root / found[0].path).read_text(encoding="utf-8")
        by_chance = sorted(found, key=lambda site: _hash(seed, site.operator, site.place, site.text))
        mutant = next(filter(None, (mutate(source, site) for site in by_chance)), None)
        if mutant is not None:
            count -= 1
            yield mutant


def _silent(tree: ast.Module) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where a fault would say nothing: (line, column) of the beginning and the end."""
    for node in ast.walk(tree):
        quiet: list[ast.AST | None] = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.Raise) or _is_type(node):
            quiet.append(node)
        for part in filter(None, quiet):
            yield (part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)


def _is_type(node: ast.AST) -> bool:
    """A union with None, or the second argument of isinstance."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return any(isinstance(side, ast.Constant) and side.value is None for side in (node.left, node.right))
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance"


def _hash(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()
