"""Result files of every experiment with numbers that are known, for tests of what reads them."""

import base64
import dataclasses
import json
import math
import pathlib
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from experiments.common import published
from experiments.common.study import Key, open_study

MODEL = {"model_sha256": "0123456789abcdef", "config_sha256": "fedcba9876543210", "dtype": "float32"}
SECRET = "the-words-of-an-answer"  # in every field that holds a text
CONTEXT = 4096
Made = tuple[Mapping[str, Any], str, Mapping[str, Any]]  # a setting, a document, its numbers


@dataclasses.dataclass(frozen=True)
class Settings:
    """As an experiment's, with places of a machine."""

    checkpoint: str = "/home/someone/models/small <b>&"
    data: tuple[str, ...] = ("/home/someone/data/pg19_test", "C:\\Users\\someone\\squality")
    judge: str = "http://judge.example:8000/v1"
    count: int = 3


def write(path: pathlib.Path, name: str, made: Iterable[Made], *, lack: int = 0, model: Any = None) -> None:
    """Writes results in the format of every experiment, but for the last ones that are lacking."""
    made = list(made)
    keys = [Key(setting, document, f"{abs(hash_of(document)):016x}") for setting, document, _ in made]
    with open_study(path, name, Settings(), MODEL if model is None else model, keys) as study:
        for key, (_, _, numbers) in list(zip(keys, made, strict=True))[: len(made) - lack]:
            study.add([key], [numbers], 1.5)


def hash_of(document: str) -> int:
    """The same in every process."""
    return zlib.crc32(document.encode())


def draws(count: int, scale: float, seed: int) -> np.ndarray:
    """Numbers around zero whose mean is zero, so that a mean of what they are added to is known exactly."""
    found = np.random.default_rng(seed).normal(0, 1, count)
    return scale * (found - found.mean())


def books(count: int) -> list[str]:
    return [f"book{number}.txt@0" for number in range(count)]


Perplexity = Callable[[str, int], float]


def papers(policy: str, budget: int) -> float:
    """Table 3 as it is."""
    found = published.perplexity(policy, budget)
    assert found is not None
    return found


def language_modeling(
    perplexity: Perplexity = papers, *, noise: float = 1e-4, count: int = 6, others: int = 6
) -> list[Made]:
    """Segments with the perplexities that are asked for over all of them; `others` of them for Table 3 alone."""
    tokens, hard = CONTEXT - 1, draws(count, 0.1, 0)
    made = []
    settings = [
        ("full", CONTEXT),
        *((policy, size) for policy in published.PERPLEXITY for size in published.BUDGETS[:-1]),
    ]
    for number, (policy, budget) in enumerate(settings):
        own = draws(count, noise, number + 1)
        rare = policy not in ("full", "baseline", "window", "window:sinks=4", "h2o", "tova")
        for index, document in enumerate(books(count)[: others if rare else count]):
            full = math.log(papers("full", CONTEXT)) + hard[index]
            above = math.log(perplexity(policy, budget) / perplexity("full", CONTEXT)) + (policy != "full") * own[index]
            numbers = {"tokens": tokens, "nats": (full + above) * tokens, "full_nats": full * tokens}
            numbers |= {"kl": 0.1 * tokens, "agreement": 0.9 * tokens}
            made.append(({"policy": policy, "budget": budget, "segment": CONTEXT}, document, numbers))
    return made


def understanding(
    lead: float = 3.0, *, noise: float = 0.5, tasks: tuple[str, ...] = ("squality", "qasper")
) -> list[Made]:
    """Answers: TOVA leads its rivals by so many points, and loses half a point to the full model at every halving."""
    made, count = [], 24
    for task in tasks:
        settings: list[tuple[str, int, str | None]] = [("full", CONTEXT, None)]
        for budget in (256, 512, 1024, 2048):
            settings += [("baseline", budget, None)]
            settings += [
                (policy, budget, mode) for policy in ("tova", "window:sinks=4") for mode in ("stepwise", "oneshot")
            ]
        for number, (policy, budget, mode) in enumerate(settings):
            loss = 0.5 * math.log2(CONTEXT / budget) + lead * (policy not in ("tova", "full"))
            for index, own in enumerate(draws(count, noise, number)):
                setting = {"task": task, "policy": policy, "budget": budget, "mode": mode, "context": CONTEXT}
                numbers = {"score": 20 + index - loss + own, "reference_nats": 300 + 10 * loss + own}
                numbers |= {"reference_tokens": 100, "generated_tokens": 40, "answer": SECRET}
                made.append(({**setting, "max_new_tokens": 48, "chat": True}, f"question{index}", numbers))
    return made


def generation(shorter: float = 100.0) -> list[Made]:
    """Stories shorter than the full model's by so many tokens with 256 kept, half as many with 512, none with 1,024."""
    made = []
    for number, (policy, budget) in enumerate([("tova", 256), ("tova", 512), ("tova", 1024), ("full", CONTEXT)]):
        less = {256: shorter, 512: shorter / 2}.get(budget, 0.0)
        for index, own in enumerate(draws(10, 2.0, number)):
            tokens = round(900 + 5 * index - less + own)
            setting = {"policy": policy, "budget": budget, "max_new_tokens": 1024, "mode": "stepwise", "chat": True}
            numbers = {"tokens": tokens, "ended": True, "text": SECRET, "prompt": SECRET}
            numbers |= {f"distinct_{size}": 0.2 * size for size in (1, 2, 3, 4)}
            numbers |= {"nats": 2.0 * tokens, "agreement": 0.7 * tokens, "same_until": 50}
            made.append((setting, f"story{index}", numbers))
    return made


def judgements(shares: Mapping[int, tuple[int, int, int]] | None = None) -> list[Made]:
    """A judge's choices, in both orders, of 50 pairs a budget and one that was dropped."""
    made = []
    for budget, (wins, ties, losses) in (shares or {256: (6, 47, 47), 512: (10, 71, 19), 1024: (5, 88, 7)}).items():
        outcomes = ["policy"] * wins + ["equal"] * ties + ["full"] * losses
        for index, choice in enumerate([*outcomes, "dropped"]):
            for first in ("policy", "full"):
                setting = {"judge": "a-model", "policy": "tova", "budget": budget, "first": first}
                split = {"policy": "policy", "full": "full"}[first]  # whoever comes first wins: a tie
                made.append(
                    (setting, f"story{index}", {"choice": split if choice == "equal" else choice, "answer": SECRET})
                )
    return made


def retention(recent: float = 0.745, *, tags: Mapping[str, tuple[float, ...]] | None = None) -> list[Made]:
    """What is kept: the paper's mean lives, but for a little noise."""
    lives: Mapping[str, tuple[float, ...]] = published.LIVES if tags is None else tags
    made = []
    for place, budget in enumerate(published.LIFE_BUDGETS):
        for index, own in enumerate(draws(5, 0.1, budget)):
            found = {tag: [10 + index, (10 + index) * (steps[place] + own)] for tag, steps in lives.items()}
            numbers = {
                "recent": recent + own / 1000,
                "recent_end": recent,
                "first": [4095.0, *[300.0 + own] * 24],
                "first_held": [1.0] + [0.0] * 24,
            }
            numbers |= {"life": published.LIFE[place] + own, "lost": 0.01, "tags": found, "joined": {}}
            made.append(({"policy": "tova", "budget": budget, "segment": CONTEXT}, f"book{index}.txt@0", numbers))
    setting = {"policy": "tova", "budget": 512, "segment": CONTEXT, "record": "map"}
    return [*made, (setting, "book0.txt@0", packed(np.minimum(np.arange(CONTEXT) + 512, CONTEXT)))]


def packed(freed: np.ndarray) -> dict[str, Any]:
    """A record of three layers that forget alike."""
    whole = np.broadcast_to(freed.astype("<i4"), (3, 1, len(freed)))
    return {"map": base64.b64encode(zlib.compress(whole.tobytes())).decode(), "shape": list(whole.shape)}


def needle(lost: float = 0.8) -> list[Made]:
    """A fact: asked for after the text TOVA misses this share of it, before it nothing."""
    made = []
    for policy, budget in (("full", None), ("tova", 64), ("tova", 256)):
        for order in ("after", "before"):
            for depth in (0.0, 0.5, 1.0):
                for draw in range(10):
                    missed = policy == "tova" and order == "after" and draw < 10 * lost
                    about = {"order": order, "length": 512, "depth": depth, "mode": "stepwise", "chat": False}
                    numbers = {"correct": int(not missed), "answer_nats": 3.0, "answer_tokens": 2, "answer": SECRET}
                    numbers |= {"held_all": 0.5, "held_any": 0.5, "held_question": None, "choice": 1, "value": SECRET}
                    size = 512 if budget is None else budget
                    made.append(({"policy": policy, "budget": size, **about}, f"512/{depth}/{draw}", numbers))
    return made


def extrapolation(drift: float = 0.02, *, lead: float = 0.05) -> list[Made]:
    """Streams whose loss rises by so much from the first block to the last; Window+4 is worse by a lead."""
    made = []
    for number, (policy, positions) in enumerate(
        (policy, positions) for policy in ("tova", "window:sinks=4") for positions in ("absolute", "cache", "gap")
    ):
        for index, own in enumerate(draws(3, 1e-3, number)):
            level = math.log(7.2) + 0.1 * index + own + lead * (policy != "tova") + 0.01 * (positions == "absolute")
            tokens = [1000] * 69 + [999]
            nats = [count * (level + drift * block / 69) for block, count in enumerate(tokens)]
            setting = {"policy": policy, "budget": 512, "positions": positions, "tokens": 70_000, "context": CONTEXT}
            made.append((setting, f"book{index}.txt", {"nats": nats, "tokens": tokens}))
    return made


def throughput(speeds: Mapping[int, float] | None = None) -> dict[str, Any]:
    """Table 1 of one dtype."""
    rows = []
    for budget in (256, 512, 1024, 2048, 4096):
        full = budget == CONTEXT
        speed = (published.THROUGHPUT if speeds is None else speeds)[budget] * 1.02
        row = {
            "dtype": "float32",
            "policy": "full" if full else "tova",
            "budget": budget,
            "state_bytes": 524_288 * budget,
        }
        row |= {"largest_batch": published.BATCH[budget], "timed": {"batch": published.BATCH[budget]}}
        rows.append({**row, "relative": {"median": speed, "each": [0.999 * speed, speed, 1.001 * speed]}})
    about = {
        "experiment": "throughput",
        "settings": dataclasses.asdict(Settings()),
        "python": "3.11",
        "device": "cpu cpu",
    }
    about |= {"versions": {"jax": "1"}, "commit": "abc", "model_sha256": {"float32": MODEL["model_sha256"]}}
    return {**about, "finished": "2026-01-01T00:00:00", "memory": {"rows": rows}}


def write_all(folder: pathlib.Path) -> None:
    """Every file, as if the paper's claims held."""
    write(folder / "language_modeling.jsonl", "language_modeling", language_modeling())
    write(folder / "understanding.jsonl", "understanding", understanding())
    write(folder / "generation.jsonl", "generation", generation())
    write(folder / "generation_judge.jsonl", "generation_judge", judgements())
    write(folder / "retention.jsonl", "retention", retention())
    write(folder / "needle.jsonl", "needle", needle())
    write(folder / "extrapolation.jsonl", "extrapolation", extrapolation())
    (folder / "throughput.json").write_text(json.dumps(throughput()))
