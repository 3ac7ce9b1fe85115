"""Numbers that the paper gives for LLaMA-2 (arXiv 2401.06104v2), to be shown beside ours."""

CONTEXT = 4096  # tokens that every model of the paper was trained with, its topline

PERPLEXITY = {  # Table 3, PG-19, by multi-state size
    "baseline": (17.65, 12.97, 10.39, 8.92, 8.04, 7.50, 7.16),
    "window": (4812.27, 4025.01, 3275.58, 2184.62, 1001.29, 240.17, 7.16),
    "window:sinks=1": (10.20, 8.97, 8.22, 7.76, 7.50, 7.33, 7.16),
    "window:sinks=4": (10.28, 8.98, 8.19, 7.73, 7.46, 7.30, 7.16),
    "h2o": (10.22, 8.97, 8.21, 7.75, 7.49, 7.32, 7.16),
    "h2o:scope=layer": (10.20, 8.97, 8.22, 7.76, 7.50, 7.33, 7.16),  # doubtful: the row of window:sinks=1
    "tova:scope=head": (11.13, 9.55, 8.69, 7.90, 7.52, 7.27, 7.16),
    "tova": (9.53, 8.32, 7.71, 7.41, 7.25, 7.17, 7.16),
    "tova:sinks=1": (9.53, 8.31, 7.71, 7.41, 7.25, 7.17, 7.16),
    "tova:sinks=4": (9.63, 8.33, 7.72, 7.41, 7.25, 7.17, 7.16),
}
BUDGETS = (64, 128, 256, 512, 1024, 2048, 4096)
FULL_PERPLEXITY = 7.16

STORIES = {256: (6, 47, 47, 1361), 512: (10, 71, 19, 1503), 1024: (5, 88, 6, 1566)}  # Figure 6: %, %, %, tokens
FULL_STORY = 1566  # tokens
SCORES = {"squality": (17, 20), "qasper": (6, 24)}  # axes of Figures 4 and 5, LLaMA-2-chat

MEMORY = {256: 0.15, 512: 0.28, 1024: 0.56, 2048: 1.11, 4096: 2.18}  # Table 1, GB of keys and values at batch 1
BATCH = {256: 139, 512: 70, 1024: 35, 2048: 17, 4096: 8}  # largest on one V100
THROUGHPUT = {256: 8.5, 512: 4.8, 1024: 3.1, 2048: 1.7, 4096: 1.0}  # over full attention's

RUNNING = (6.8, 8.2)  # perplexity, the axis of Figure 7

RECENT = (0.73, 0.76)  # share of recent tokens among those kept
LIFE_BUDGETS = (256, 512, 1024, 2048)
LIFE = (249, 481, 897, 1537)  # mean steps kept, all tokens
LIVES = {  # Table 5: mean steps kept, by Penn tag
    "POS": (1134, 1393, 1736, 2061),
    "''": (845, 1101, 1413, 1774),
    "$": (329, 724, 1276, 2123),
    ")": (379, 670, 1161, 1558),
    ".": (350, 645, 1117, 1677),
    "NNPS": (321, 578, 1042, 1671),
    "newline": (303, 550, 969, 1538),
    "WP$": (255, 539, 1121, 1920),
    "CD": (301, 537, 940, 1557),
    "NN": (270, 527, 983, 1628),
    ",": (236, 453, 840, 1454),
    "PRP$": (189, 383, 745, 1386),
    "DT": (190, 379, 734, 1363),
    "MD": (177, 378, 754, 1392),
    "TO": (182, 368, 734, 1363),
    "IN": (190, 385, 760, 1408),
}


def perplexity(policy: str, budget: int) -> float | None:
    """The paper's perplexity of a policy, None where it gives none."""
    if policy == "full":
        return FULL_PERPLEXITY
    if policy not in PERPLEXITY or budget not in BUDGETS:
        return None
    return PERPLEXITY[policy][BUDGETS.index(budget)]


def life(tag: str | None, budget: int) -> float | None:
    """The paper's mean steps that tokens of a tag are kept, of all tokens for None."""
    if budget not in LIFE_BUDGETS or (tag is not None and tag not in LIVES):
        return None
    return (LIFE if tag is None else LIVES[tag])[LIFE_BUDGETS.index(budget)]
