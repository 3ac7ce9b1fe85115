"""What is timed, section by section."""

import dataclasses
import math

from experiments.common.shapes import SHAPES
from msrnn_jax.policies import parse_policy
from msrnn_jax.policies.registry import POLICIES
from msrnn_jax.recurrence.checks import MAX_BUDGET, check_dtype, check_int, check_protection

DEFAULT_SECTIONS = ("roofline", "decode", "prompt", "extend", "memory")
SECTIONS = (*DEFAULT_SECTIONS, "policies")  # which takes as long as all others together, so it must be asked for
MOST_GIB = 1_000_000
OVERFILL = 8  # tokens read beyond the budget, so that a state is full and forgets


@dataclasses.dataclass(frozen=True)
class Roofline:
    """What the machine can do, on the model's own MLPs."""

    rows: tuple[int, ...] = (1, 8, 32, 128, 512)  # tokens that go through the products together


@dataclasses.dataclass(frozen=True)
class Decode:
    """Steps that each wait for the one before."""

    budget: int = 256
    budgets: tuple[int, ...] = (64, 256, 512, 1024)  # at batch 1
    batches: tuple[int, ...] = (1, 8, 32)
    early: int = 2_000  # position of the token in one series of steps
    late: int = 20_000  # and in the other
    prompt: int = 512  # tokens read before, outside the time
    new_tokens: int = 24  # steps in a call


@dataclasses.dataclass(frozen=True)
class Prompt:
    """From a prompt to its first token."""

    length: int = 2_000
    budget: int = 256


@dataclasses.dataclass(frozen=True)
class Extend:
    """Reading a text with its losses; one factor is varied at a time."""

    tokens: int = 4_096
    budget: int = 512
    chunk: int = 128
    chunks: tuple[int, ...] = (64, 128, 256, 512)
    budgets: tuple[int, ...] = (64, 256, 512, 1024, 2048)
    policies: tuple[str, ...] = ("tova", "tova:scope=head", "h2o", "window", "window:sinks=4", "random", "full")
    grid_tokens: int = 512  # of every variation; the time per token does not depend on it
    stretch: int = 128  # tokens that `step` is scanned over
    long: int = 32_768  # compiled for its memory only


@dataclasses.dataclass(frozen=True)
class Memory:
    """How many rows fit."""

    budgets: tuple[int, ...] = (256, 512, 1024, 2048)
    full: int = 4_096  # tokens that full attention holds
    gib: float | None = None  # None: what the accelerator has, and beside a CPU the 32 of the paper's
    full_batch: int | None = None  # instead: the memory that so many rows of full attention just fill
    check_batch: int = 2  # rows of the compiled step that is compared with the analysis
    largest: bool | None = None  # also decode at the largest batch; None: on accelerators


def every_policy() -> tuple[str, ...]:
    """All that forget, those that cut every so many tokens also at each, and some that cut at each also every 128."""
    ours = [policy() for policy in POLICIES.values() if policy.forgets]
    at_each = [policy.replace(every=1) for policy in ours if policy.every > 1]
    return (*map(str, ours), *map(str, at_each), *(f"{name}:every=128" for name in ("window", "tova", "h2o")))


@dataclasses.dataclass(frozen=True)
class Policies:
    """Every policy beside Window, at the budget of decode and the chunk of extend."""

    compared: tuple[str, ...] = every_policy()
    batches: tuple[int, ...] = (1, 8)


@dataclasses.dataclass(frozen=True)
class Settings:
    """One run."""

    checkpoint: str | None = None
    shape: str | None = None  # random weights of this shape instead
    sections: tuple[str, ...] = DEFAULT_SECTIONS
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    policy: str = "tova"  # of everything but the variations
    texts: tuple[str, ...] = ()  # empty: the default text
    turns: int = 5
    slow_turns: int = 3  # where a call takes seconds: prompt, extend and policies
    peers: bool = True
    roofline: Roofline = Roofline()
    decode: Decode = Decode()
    prompt: Prompt = Prompt()
    extend: Extend = Extend()
    memory: Memory = Memory()
    policies: Policies = Policies()


def check(settings: Settings, random: bool) -> None:
    """Refuses, before any work, what could not be run."""
    _check_model(settings, random)
    for section in settings.sections:
        if section not in SECTIONS:
            raise ValueError(f"section {section!r} is unknown; it must be one of {', '.join(SECTIONS)}")
    for dtype in settings.dtypes:
        check_dtype(dtype)
    for owner in (settings, *(getattr(settings, section) for section in SECTIONS)):
        for field in dataclasses.fields(owner):
            _check_counts(field.name, getattr(owner, field.name))
    _check_policies(settings)
    if settings.memory.gib is not None and not 0 < settings.memory.gib <= MOST_GIB:
        raise ValueError(f"memory_gib is {settings.memory.gib}; it must be a number above 0, {MOST_GIB:,} at most")
    if settings.memory.gib is not None and settings.memory.full_batch is not None:
        given = f"memory_gib {settings.memory.gib} and full_batch {settings.memory.full_batch}"
        raise ValueError(f"both {given} are given, and each says how much memory there is; give one of them")
    extend = settings.extend
    if extend.grid_tokens > extend.tokens or extend.tokens >= extend.long:
        raise ValueError(f"grid_tokens {extend.grid_tokens}, tokens {extend.tokens} and long {extend.long} must ascend")
    if max(extend.chunk, *extend.chunks) > extend.grid_tokens:
        raise ValueError(f"grid_tokens is {extend.grid_tokens}; it must be at least the largest chunk")
    least = seen(settings.decode, settings.decode.budget)
    if "decode" in settings.sections and min(settings.decode.early, settings.decode.late) < least:
        raise ValueError(f"early and late must be at least {least}, the tokens that the state has read by then")


def seen(decode: Decode, *budgets: int) -> int:
    """Tokens read before the first step that is timed, so that a state of the largest of these budgets is full."""
    return max(decode.prompt, max(budgets) + OVERFILL)


def read_by_each(settings: Settings) -> int:
    """Tokens that a call of `extend` reads in the section policies: they fill a state, and end where every policy cuts.

    So whatever a policy does now and then is in the time of a call as often as it is due.
    """
    cycle = math.lcm(*(parse_policy(policy).every for policy in settings.policies.compared))
    return -(-seen(settings.decode, settings.decode.budget + cycle) // cycle) * cycle


def tokens_needed(settings: Settings) -> int:
    """The most tokens of text that any selected section reads."""
    extend = settings.extend
    needed = {
        "decode": seen(settings.decode, settings.decode.budget, *settings.decode.budgets),
        "prompt": settings.prompt.length,
        "extend": max(extend.tokens, extend.budget + OVERFILL + extend.stretch) + 1,
        "policies": 2 * read_by_each(settings) + 1,
    }
    return max(needed.get(section, 0) for section in settings.sections)


def _check_model(settings: Settings, random: bool) -> None:
    if settings.shape is None:
        if random:
            raise ValueError("random is for weights of a shape; give --shape NAME as well")
        if settings.checkpoint is None:
            raise ValueError("the checkpoint is missing; give one, or --shape NAME --random")
        return
    if settings.shape not in SHAPES:
        raise ValueError(f"shape {settings.shape!r} is unknown; it must be one of {', '.join(SHAPES)}")
    if settings.checkpoint is not None:
        raise ValueError(f"both a checkpoint and the shape {settings.shape!r} are given; give one of them")
    if not random:
        raise ValueError(f"the shape {settings.shape!r} has no weights; add --random to draw them")


def _check_counts(name: str, value: object) -> None:
    """Whole numbers are at least 1, lists of them too, and not empty."""
    values = value if isinstance(value, tuple) else (value,)
    if not values and name != "texts":
        raise ValueError(f"{name} is empty; it must have at least one entry")
    for one in values:
        if isinstance(one, int) and not isinstance(one, bool):
            check_int(name, one, 1, MAX_BUDGET)


def _check_policies(settings: Settings) -> None:
    policy = parse_policy(settings.policy)
    if not policy.forgets:
        raise ValueError(f"policy is {policy}; it must be one that forgets: full attention is timed beside it")
    if policy.prompt:
        raise ValueError(f"policy is {policy}, which keeps prompts longer than budgets; give it prompt=False")
    check_protection(policy, [settings.decode.budget, *settings.decode.budgets, settings.prompt.budget])
    check_protection(policy, [settings.extend.budget, *settings.extend.budgets, *settings.memory.budgets])
    for other in settings.extend.policies:
        check_protection(parse_policy(other), [settings.extend.budget])
    for other in map(parse_policy, settings.policies.compared if "policies" in settings.sections else ()):
        if not other.forgets:
            raise ValueError(f"compared is {other}; it must be a policy that forgets")
        check_protection(other, [settings.decode.budget])
