"""The policies that are compared, by family, and what tables call them."""

from typing import NamedTuple

from msrnn_jax.policies import parse_policy

EVERY_TOKEN, SELDOM = 1, 128  # tokens between two cuts: a policy is held against those that cut as often
BOTH = (EVERY_TOKEN, SELDOM)


class Kind(NamedTuple):
    """A policy, whenever it cuts."""

    policy: str  # its text; `every` does not count
    label: str
    family: str
    every: tuple[int, ...]


UNSCORED = ("Window", "Random")  # families that look at neither attention nor keys
RANDOM = "random:scope=head,apart=True"
KINDS = (
    Kind("window", "Window", "Window", (EVERY_TOKEN,)),
    Kind("window:sinks=4", "Window+4", "Window", BOTH),
    Kind(RANDOM, "Random", "Random", (EVERY_TOKEN,)),
    Kind(f"{RANDOM},sinks=4", "Random+4", "Random", BOTH),
    Kind(f"{RANDOM},sinks=32", "Random+32", "Random", BOTH),
    Kind("tova", "TOVA", "TOVA", BOTH),
    Kind("tova:scope=head", "TOVA per head", "TOVA", (EVERY_TOKEN,)),
    Kind("tova:scope=head,adaptive=0.2", "TOVA, Ada-KV", "TOVA", (EVERY_TOKEN,)),
    Kind("tova:pyramid=20.0", "TOVA, pyramid", "TOVA", (EVERY_TOKEN,)),
    Kind("h2o", "H2O", "summed attention", BOTH),
    Kind("h2o:normalize=True", "H2O, mean", "summed attention", BOTH),
    Kind("h2o:weigh=True", "H2O, values", "summed attention", (EVERY_TOKEN,)),
    Kind("a2sf", "A2SF", "summed attention", BOTH),
    Kind("roco", "RoCo", "other attention", BOTH),
    Kind("keyformer", "Keyformer", "other attention", (EVERY_TOKEN,)),
    Kind("snapkvd", "SnapKV-D", "newest queries", BOTH),
    Kind("rkv", "R-KV", "newest queries", BOTH),
    Kind("gkv", "G-KV", "newest queries", BOTH),
    Kind("morphkv:recent=16", "MorphKV", "newest queries", BOTH),
    Kind("expectedattention", "Expected Attention", "queries to come", BOTH),
    Kind("triattention:prompt=False", "TriAttention, own means", "queries to come", BOTH),
    Kind("knorm", "Knorm", "keys", BOTH),
    Kind("keydiff", "KeyDiff", "keys", BOTH),
    Kind("cur", "CUR", "keys", BOTH),
    Kind("lagkv", "LagKV", "keys", (SELDOM,)),
    Kind("lagkv:lag=32", "LagKV, lag 32", "keys", (SELDOM,)),
)


def cut(policy: str, every: int) -> str:
    """The text of the same policy that cuts every so many tokens."""
    return str(parse_policy(policy).replace(every=every))


def every_of(policy: str) -> int:
    """How many tokens come between two of its cuts."""
    return parse_policy(policy).every


def held(budget: int, every: int) -> float:
    """How many tokens a row holds after a step, mean from one cut to the next."""
    return budget + (every - 1) / 2


DEFAULT = tuple(cut(kind.policy, every) for every in BOTH for kind in KINDS if every in kind.every)
# They compare or turn all keys at each token, which takes minutes for a thousand tokens: on fewer segments.
SLOW = tuple(cut(policy, EVERY_TOKEN) for policy in ("rkv", "expectedattention"))
_KNOWN = {cut(kind.policy, EVERY_TOKEN): kind for kind in KINDS}


def kind_of(policy: str) -> Kind:
    """What is known of a policy; one that is not in the list is a family of its own."""
    own = Kind(policy, policy, policy, ())
    return _KNOWN.get(cut(policy, EVERY_TOKEN), own)
