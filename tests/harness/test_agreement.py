"""Under full attention, the answers and log-likelihoods of lm-evaluation-harness's own Hugging Face model."""

import json

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from msrnn_jax.lm_eval import TASKS, MultiStateLM

REASON = "needs torch==2.13.0 and transformers: pip install 'msrnn_jax[test,torch]'"
BOOK = "The lighthouse keeper wrote down every ship that passed. Some nights there were none, and he read instead. "


@pytest.mark.exhaustive
@pytest.mark.optimised
def test_answers_and_log_likelihoods(smollm2, tmp_path):
    pytest.importorskip("torch", reason=REASON)
    pytest.importorskip("transformers", reason=REASON)
    from lm_eval.models.huggingface import HFLM

    from convert.huggingface.export import export

    exported = tmp_path / "exported"
    export(smollm2, exported)
    book = tmp_path / "book.txt"
    book.write_text(BOOK * 30)
    metadata = {"texts": str(book), "words": 120, "cases": 4}
    ours = MultiStateLM(str(smollm2), policy="full", rolling="windows", max_length=256, batch_size=4)
    theirs = HFLM(str(exported), device="cpu", dtype="float32", max_length=256, batch_size=4)
    samples = []
    for lm in (theirs, ours):
        manager = TaskManager(include_path=TASKS, metadata=metadata)
        tasks = ["msrnn_books", "msrnn_choices", "msrnn_needle"]
        results = simple_evaluate(lm, tasks=tasks, task_manager=manager, bootstrap_iters=0)
        assert results is not None
        samples.append(results["samples"])
    for task in samples[0]:
        for expected, actual in zip(samples[0][task], samples[1][task], strict=True):
            assert json.dumps(actual["arguments"]) == json.dumps(expected["arguments"])
            for (theirs_one,), (ours_one,) in zip(expected["resps"], actual["resps"], strict=True):
                if isinstance(theirs_one, str):
                    assert ours_one == theirs_one
                elif isinstance(theirs_one, float):  # a sum over hundreds of tokens, in float32
                    assert ours_one == pytest.approx(theirs_one, rel=1e-5)
                else:
                    assert ours_one[0] == pytest.approx(theirs_one[0], abs=1e-3) and ours_one[1] == theirs_one[1]
