"""How near an answer is to those of people, in points from 0 to 100."""

import functools
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

ROUGE = ("rouge1", "rouge2", "rougeL")
ARTICLES = re.compile(r"\b(?:a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def answer_f1(answer: str, references: Sequence[str]) -> dict[str, float]:
    """QASPER's Answer F1: of words, the best over the references.

    Dasigi et al., A Dataset of Information-Seeking Questions and Answers Anchored in Research Papers, 2021: letters
    in lower case, without punctuation and articles.
    """
    return {"score": 100 * max(_f1(_words(answer), _words(reference)) for reference in references)}


def rouge(answer: str, references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, 2 and L F-measures, for each the best over the references, and as `score` their geometric mean.

    That of many answers is the geometric mean of the three means, see `tables.score_of`.

    Google's `rouge-score` without stemming, as ZeroSCROLLS has it (Shaham et al., 2023).
    """
    best = _scorer().score_multi(references, answer)
    found = {name: 100 * best[name].fmeasure for name in ROUGE}
    return {"score": geometric(list(found.values())), **found}


def geometric(values: Sequence[float]) -> float:
    """The geometric mean of three."""
    product = 1.0
    for value in values:
        product *= value
    return product ** (1 / len(values))


def _words(text: str) -> Counter[str]:
    return Counter(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def _f1(answer: Counter[str], reference: Counter[str]) -> float:
    common = (answer & reference).total()
    return 2 * common / (answer.total() + reference.total()) if common else 0.0


@functools.cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # seconds, and QASPER does without

    return RougeScorer(list(ROUGE), use_stemmer=False)
