"""Seeds faults into the code, one at a time, and tells which of them the tests catch: `python tests/mutants.py --help`.

Run it in the root of the tree that it measures, with the Python that the tree is installed in. Every fault is put into
a copy of the tree. There run the test files that execute its line, each in a process of its own, until one fails; which
lines a test file executes is measured first. A file is the unit, not a test: what JAX traced for an earlier test runs
unseen in a later one. All that was found is kept in the folder of results, so that the next run goes on from there.
"""

import itertools
import json
import os
import queue
import signal
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from mutant_runs import Copy, Measurement
from mutant_sites import Mutant, draw, is_core

CORE = ["msrnn_jax/policies*", "msrnn_jax/recurrence*"]
PACKAGES = ["msrnn_jax", "convert"]
EQUIVALENT = "tests/equivalent_mutants.json"


def report(judged: list[tuple[Mutant, dict]], core: list[str]) -> str:
    """A table by folder, and the faults that no test caught."""
    rows: dict[str, Counter] = defaultdict(Counter)
    for mutant, result in judged:
        path = mutant.site.path
        for row in (os.path.dirname(path), "core" if is_core(path, core) else "others", "all"):
            rows[row][result["verdict"]] += 1
    last = [name for name in ("core", "others", "all") if name in rows]
    kinds = ["killed", "timeout", "survived", "undecided", "not covered", "equivalent"]
    lines = [f"{'':<24}" + "".join(f"{cell:>13}" for cell in [*kinds, "caught"])]
    for name in [*sorted(rows.keys() - last), *last]:
        caught, counted = rows[name]["killed"] + rows[name]["timeout"], rows[name].total() - rows[name]["equivalent"]
        score = f"{100 * caught / counted:.1f} %" if counted else "-"
        lines.append(f"{name:<24}" + "".join(f"{cell:>13}" for cell in [*(rows[name][kind] for kind in kinds), score]))
    for kind in kinds[2:]:
        lines += [f"{kind}: {mutant}\n  {result['by']}" for mutant, result in judged if result["verdict"] == kind]
    return "\n".join(lines)


def equivalents(root: Path) -> dict[tuple[str, str, str], str]:
    """Faults that change nothing a user could notice: why, by file, line and what becomes of it."""
    path = root / EQUIVALENT
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return {(row["file"], row["line"], row["becomes"]): row["reason"] for row in rows}


def measure(
    count: Annotated[int, typer.Option(help="How many faults are drawn.")] = 160,
    seed: Annotated[int, typer.Option(help="Of the drawing; what lines read decides the rest.")] = 0,
    share: Annotated[float, typer.Option(help="Of the faults that lie in the core, at least.")] = 0.4,
    core: Annotated[list[str], typer.Option(help="Pattern of paths of the core.")] = CORE,
    package: Annotated[list[str], typer.Option(help="Folder that faults are seeded into.")] = PACKAGES,
    only: Annotated[str, typer.Option(help="Part of what --list says of the faults that are to run.")] = "",
    minutes: Annotated[
        float,
        typer.Option(
            help="Of a processor, for the tests of a fault; then it is undecided. 0: only tell what is known."
        ),
    ] = float("inf"),
    workers: Annotated[int, typer.Option(help="Copies of the tree that tests run in at once.")] = os.cpu_count() or 1,
    results: Annotated[Path, typer.Option(help="Where what was found is kept.")] = Path(".mutants"),
    show: Annotated[bool, typer.Option("--list", help="Name the faults, and run nothing.")] = False,
) -> None:
    """Measures how many seeded faults the tests catch."""
    root, results = Path.cwd(), results.absolute()
    drawn = draw(root, package, count=count, seed=seed, core=core, share=share)
    mutants = [mutant for mutant in drawn if only in str(mutant)]
    if show:
        print(*mutants, sep="\n")
        return
    reasons = equivalents(root)
    reason = {mutant.name: reasons.get((mutant.site.path, mutant.site.text, mutant.becomes)) for mutant in mutants}
    measurement = Measurement(root, package, results)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch, ThreadPoolExecutor(workers) as pool:
        free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        copies = [Copy(root, Path(scratch) / str(number), measurement.names, results) for number in range(workers)]
        for copy in copies:
            free.put(copy)

        def each(do: Callable, items: list) -> list:
            def in_free_copy(item):
                copy = free.get()
                try:
                    return do(item, copy)
                finally:
                    free.put(copy)

            return list(pool.map(in_free_copy, items))

        try:
            each(measurement.cover, measurement.tests)
            # In an order by chance, so that what is done early is a sample, too.
            others = sorted((m for m in mutants if not reason[m.name]), key=lambda mutant: mutant.name)
            judged = list(zip(others, each(partial(measurement.judge, most=60 * minutes), others), strict=True))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for copy in copies:
                copy.stop()
    judged += [(mutant, {"verdict": "equivalent", "by": why}) for mutant in mutants if (why := reason[mutant.name])]
    rows = ({"name": mutant.name, **mutant.site._asdict(), "becomes": mutant.becomes, **row} for mutant, row in judged)
    judged.sort(key=lambda found: found[0])
    (results / "mutants.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(report(judged, core))
    failing = [run.failing if run.passed else [test] for test, run in measurement.covered.items()]
    if any(failing):
        print("not run, since they fail without a fault:", *itertools.chain(*failing))


if __name__ == "__main__":
    typer.run(measure)
