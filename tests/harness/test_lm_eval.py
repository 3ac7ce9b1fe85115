"""What lm-evaluation-harness is told, against the recurrence token by token."""

import collections
import importlib.metadata
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from devices import on_devices
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.api.registry import Registry
from tokenizers import Tokenizer, processors
from toy import make_toy

import msrnn_jax as ms
from msrnn_jax.lm_eval import MultiStateLM
from msrnn_jax.lm_eval.reader import Reader
from msrnn_jax.policies.budgets import least_budget

CONFIG = tiny.SHALLOW
PAIRS = [
    ("the cat sat on the mat and", " it slept"),
    ("a dog", " runs"),
    ("the cat sat on the mat and", " ran"),
    ("a dog", "s"),
    ("the cat sat on the mat and", " was"),
    ("one two three four five six seven eight", " nine ten eleven"),
    ("", "all of it"),
]
TEXTS = ["a sentence of some length. and another one that is a bit longer.", "short", "the middle one of three"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("toy") / "toy", CONFIG)


def model(toy, **arguments):
    return MultiStateLM(**{"pretrained": toy, "budget": 6, "batch_size": 3, **arguments})


def asked(kind, *arguments):
    return [Instance(kind, {}, one, index) for index, one in enumerate(arguments)]


def stepped(lm, context, continuation, budget, policy=None):
    """log p of every token of a continuation, by `step`, and whether greedy decoding writes them."""
    policy = policy or lm.reader.policy
    config, params = lm.reader.config, lm.reader.params
    state = ms.init_state(config, policy, budget, positions=lm.reader.positions)
    state, logits = ms.prefill(config, policy, params, state, context, mode=lm.reader.mode)
    total, greedy = 0.0, True
    for token in continuation:
        total += float(jax.nn.log_softmax(logits)[token])
        greedy &= int(logits.argmax()) == token
        state, logits = ms.step(config, policy, params, state, jnp.int32(token))
    return total, greedy


def tokens_of(lm, context, continuation):
    """As the harness cuts them."""
    encode = lm.reader.tokenizer.encode
    return (encode(context) if context else [3]), encode(continuation)


@pytest.mark.parametrize(
    "arguments",
    tiny.few(
        [
            {},
            {"policy": "h2o:recent=2+sinks=1"},
            {"policy": "snapkvd:every=4+recent=2", "budget": 5},
            {"policy": "tova:pyramid=3.0", "positions": "cache"},
            {"mode": "oneshot", "policy": "tova:scope=head+adaptive=0.5"},
            {"positions": "gap", "batch_size": 1},
        ],
        {},
        {"policy": "h2o:recent=2+sinks=1"},
    ),
    ids=str,
)
def test_continuations_cost_what_steps_say(toy, arguments):
    lm = model(toy, **arguments)
    results = lm.loglikelihood(asked("loglikelihood", *PAIRS))
    for pair, (total, greedy) in zip(PAIRS, results, strict=True):
        expected, is_greedy = stepped(lm, *tokens_of(lm, *pair), lm.reader.budget)
        assert total == pytest.approx(expected, abs=1e-4) and greedy == is_greedy, pair


def test_what_greedy_decoding_writes_is_known(toy):
    lm = model(toy)
    written = lm.generate_until(asked("generate_until", ("the cat", {"until": [], "max_gen_toks": 5})))
    later = written[0][:3] + ("z" if written[0][3] != "z" else "y")
    pairs = [("the cat", text) for text in (written[0], written[0][:1], later)]
    assert len(written[0]) == 5
    assert [greedy for _, greedy in lm.loglikelihood(asked("loglikelihood", *pairs))] == [True, True, False]


def test_full_attention_holds_context_and_continuation(toy):
    lm = model(toy, policy="full", budget=1)
    pairs = [*PAIRS[:2], ("ab " * 83 + "ab", " and so on")]  # 251 tokens, and 10
    results = lm.loglikelihood(asked("loglikelihood", *pairs))
    for pair, (total, _) in zip(pairs, results, strict=True):
        context, continuation = tokens_of(lm, *pair)
        assert total == pytest.approx(stepped(lm, context, continuation, 300)[0], abs=1e-4)


def test_a_share_is_of_the_context_and_never_below_what_is_protected(toy):
    lm = model(toy, budget=0.3, policy="window:sinks=2")
    results = lm.loglikelihood(asked("loglikelihood", *PAIRS))
    for pair, (total, _) in zip(PAIRS, results, strict=True):
        context, continuation = tokens_of(lm, *pair)
        budget = max(2, -(-3 * len(context) // 10))
        assert total == pytest.approx(stepped(lm, context, continuation, budget)[0], abs=1e-4)


def test_shares_are_exact_and_hold_what_every_layer_protects(toy):
    def budgets(**arguments):
        reader = model(toy, **arguments).reader
        return [reader._budget(count, count) for count in (4, 50, 100)]

    assert budgets(budget=0.07) == [1, 4, 7] and budgets(budget=0.14) == [1, 7, 14]
    assert budgets(budget=0.1, policy="window:sinks=2", prompt_policy="window:sinks=6") == [6, 6, 10]


def test_shares_with_a_pyramid(tmp_path):
    lm = model(make_toy(tmp_path / "toy"), budget=0.25, policy="tova:sinks=2+pyramid=10.0", batch_size="auto")
    policy = lm.reader.policy
    for pair, (total, _) in zip(PAIRS, lm.loglikelihood(asked("loglikelihood", *PAIRS)), strict=True):
        context, continuation = tokens_of(lm, *pair)
        budget = max(least_budget(2, policy), math.ceil(len(context) / 4))
        assert total == pytest.approx(stepped(lm, context, continuation, budget)[0], abs=1e-4)


def test_prompts_that_are_kept_are_held_to_the_budgets_of_their_rows(toy):
    lm = model(toy, policy="tova:prompt=True", budget=1.0, batch_size=4)
    for pair, (total, _) in zip(PAIRS, lm.loglikelihood(asked("loglikelihood", *PAIRS)), strict=True):
        context, continuation = tokens_of(lm, *pair)
        assert total == pytest.approx(stepped(lm, context, continuation, len(context))[0], abs=1e-4)


@pytest.mark.parametrize("most", [None, 1])
def test_as_many_rows_as_fit(toy, most):
    """Also where the policy needs more slots than the one that reads contexts, and prompts are read at once."""
    arguments = {"policy": "snapkvd:recent=2", "prompt_policy": "h2o", "mode": "oneshot"}
    requests = asked("loglikelihood", *PAIRS)
    two = model(toy, batch_size=2, **arguments).loglikelihood(requests)
    auto = model(toy, batch_size="auto", max_batch_size=most, **arguments).loglikelihood(requests)
    np.testing.assert_allclose([total for total, _ in auto], [total for total, _ in two], rtol=1e-4)


def test_a_policy_for_contexts(toy):
    lm = model(toy, policy="window", prompt_policy="tova", budget=4)
    ((total, _),) = lm.loglikelihood(asked("loglikelihood", PAIRS[0]))
    context, continuation = tokens_of(lm, *PAIRS[0])
    config, params, tova, window = lm.reader.config, lm.reader.params, ms.TOVA(), ms.Window()
    state, logits = ms.prefill(config, tova, params, ms.init_state(config, tova, 4), context)
    state = ms.hand_over(config, tova, window, state)
    expected = float(jax.nn.log_softmax(logits)[continuation[0]])
    expected -= float(ms.nll(config, window, params, state, continuation[:-1], continuation[1:])[1].sum())
    assert total == pytest.approx(expected, abs=1e-4)


def test_every_context_is_read_once(toy, monkeypatch):
    read, original = [], Reader._read

    def spy(self, jobs, *rest):
        read.extend({job.context for job in jobs})  # the last batch is filled up
        return original(self, jobs, *rest)

    monkeypatch.setattr(Reader, "_read", spy)
    model(toy).loglikelihood(asked("loglikelihood", *PAIRS))
    assert max(collections.Counter(read).values()) == 1 and len(read) == len({context for context, _ in PAIRS})


@pytest.mark.parametrize("budget", [6, 0.25])
def test_one_state_reads_all_of_a_text(toy, budget):
    lm = model(toy, budget=budget)
    totals = lm.loglikelihood_rolling(asked("loglikelihood_rolling", *[(text,) for text in TEXTS]))
    config, params = lm.reader.config, lm.reader.params
    for text, total in zip(TEXTS, totals, strict=True):
        tokens = [3, *lm.reader.tokenizer.encode(text)]
        size = budget if isinstance(budget, int) else math.ceil(budget * len(tokens))
        state = ms.init_state(config, lm.reader.policy, size)
        _, losses = ms.nll(config, lm.reader.policy, params, state, tokens[:-1], tokens[1:])
        assert total == pytest.approx(-float(losses.sum()), abs=1e-3)


def test_texts_without_tokens_cost_nothing(toy):
    assert model(toy).loglikelihood_rolling(asked("loglikelihood_rolling", ("",))) == [0.0]
    assert model(toy).generate_until([]) == [] and model(toy).loglikelihood([]) == []


def test_windows_know_nothing_of_each_other(toy):
    lm = model(toy, policy="full", rolling="windows", max_length=16)
    (total,) = lm.loglikelihood_rolling(asked("loglikelihood_rolling", (TEXTS[0],)))
    tokens = lm.reader.tokenizer.encode(TEXTS[0])
    expected, start = 0.0, 0
    while start < len(tokens):  # the last window begins earlier, so that it is full
        end = min(start + 16, len(tokens))
        window = ([3, *tokens])[max(0, end - 16) : end]
        state = ms.init_state(lm.reader.config, ms.Full(), 20)
        losses = ms.nll(lm.reader.config, ms.Full(), lm.reader.params, state, window, tokens[max(0, end - 16) : end])[1]
        expected -= float(losses[start - end :].sum())
        start = end
    assert total == pytest.approx(expected, abs=1e-3)


def test_texts_longer_than_one_block(toy, monkeypatch):
    monkeypatch.setattr("msrnn_jax.evaluation.continuations.BLOCK", 8)
    monkeypatch.setattr("msrnn_jax.evaluation.continuations.WIDTHS", (1, 8))
    test_one_state_reads_all_of_a_text(toy, 6)


def test_contexts_that_are_too_long_lose_their_beginning(toy, caplog):
    lm = model(toy, max_length=20)
    ((total, _),) = lm.loglikelihood(asked("loglikelihood", PAIRS[5]))
    context, continuation = tokens_of(lm, *PAIRS[5])
    expected = stepped(lm, (context + continuation)[-21 : -len(continuation)], continuation, 6)[0]
    assert total == pytest.approx(expected, abs=1e-4)
    assert "1 of 1 contexts lose their beginning: max_length=20" in caplog.text


def test_written_texts_are_those_of_stream_text(toy):
    lm = model(toy, budget=0.5)
    contexts = ["the cat sat", "a dog runs and runs", "x", "one two three"]
    settings = {"until": ["e", ""], "max_gen_toks": 12}
    texts = lm.generate_until(asked("generate_until", *[(context, settings) for context in contexts]))
    config, params, tokenizer = lm.reader.config, lm.reader.params, lm.reader.tokenizer
    for context, text in zip(contexts, texts, strict=True):
        given = {"budget": math.ceil(len(context) / 2), "max_new_tokens": 12, "stop_strings": ["e"]}
        stream = ms.stream_text(config, ms.TOVA(), params, tokenizer, [context], **given)
        list(stream)
        assert text == stream.rows[0].text
    assert not any("e" in text for text in texts)


def test_draws_do_not_depend_on_the_batch_and_repeats_differ(toy):
    settings = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.5, "top_k": 40}
    requests = asked("generate_until", *[(context, settings) for context in ("the cat", "the cat", "a dog")])
    alone, together = (model(toy, batch_size=size, seed=1).generate_until(requests) for size in (1, 3))
    assert alone == together and len(set(alone)) == 3
    assert model(toy, seed=2).generate_until(requests) != alone


def test_a_run_that_was_cut_off_goes_on(toy, tmp_path, monkeypatch):
    requests = asked("loglikelihood", *PAIRS)
    expected = model(toy).loglikelihood(requests)
    original = Reader._judge

    def stop(self, draft, wanted, pairs):
        if len(wanted) < 3:
            raise KeyboardInterrupt
        return original(self, draft, wanted, pairs)

    with monkeypatch.context() as patch:
        patch.setattr(Reader, "_judge", stop)
        with pytest.raises(KeyboardInterrupt):
            CachingLM(model(toy), str(tmp_path / "cache.db")).loglikelihood(requests)
    lm = model(toy)
    judged = []
    monkeypatch.setattr(
        lm, "_loglikelihood_tokens", lambda asked, **rest: judged.extend(asked) or original_of(lm)(asked)
    )
    cached = CachingLM(lm, str(tmp_path / "cache.db"))
    again = cached.loglikelihood(requests)
    assert 0 < len(judged) < len(PAIRS)
    np.testing.assert_allclose([total for total, _ in again], [total for total, _ in expected], rtol=1e-5)


def original_of(lm):
    return lambda asked: MultiStateLM._loglikelihood_tokens(lm, asked)


def test_chat_templates(toy):
    lm = model(toy)
    turns = [{"role": "user", "content": "hello "}, {"role": "assistant", "content": "so it is"}]
    assert lm.apply_chat_template(turns) == "hello so it is"
    for begun in ("so", "so ", "e"):  # a task that gives the beginning of the answer
        text = lm.apply_chat_template([*turns[:1], {"role": "assistant", "content": begun}], False)
        assert text == f"hello {begun}"
    assert lm.chat_template(True) == lm.reader.tokenizer.template and lm.chat_template(False) is None
    assert lm.tokenizer_name == model(toy, policy="h2o").tokenizer_name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "tovva"}, "policy 'tovva' is unknown"),
        ({"budget": 0}, "budget is 0; it must be"),
        ({"budget": 1.5}, "budget is 1.5; a share of the context must be above 0 and at most 1.0"),
        ({"budget": 2, "policy": "window:sinks=4"}, "sinks"),
        ({"mode": "twice"}, "mode is 'twice'"),
        ({"positions": "none"}, "positions is 'none'"),
        ({"rolling": "stones"}, "rolling is 'stones'; it must be one of state, windows"),
        ({"batch_size": "many"}, "batch_size is 'many'"),
        ({"max_length": 1}, "max_length is 1"),
        ({"pretrained": "nowhere"}, "nowhere"),
        (
            {"policy": "h2o:recent=1", "sinks": 1},
            "argument 'sinks' is unknown; within a policy, write a plus for a comma",
        ),
        ({"policy": "window:sinks=8", "prompt_policy": "tova"}, "protects 8 sinks"),
        ({"policy": "full", "prompt_policy": "tova"}, "prompt_policy is tova, but full forgets nothing"),
        ({"prompt_policy": "h2o"}, "tova forgets by layer, but h2o leaves other tokens in every head"),
    ],
    ids=str,
)
def test_arguments_that_are_refused(toy, arguments, message):
    with pytest.raises(ValueError, match=message):
        model(toy, **arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 4, "repetition_penalty": 1.0}, "generation option num_beams is 4"),
        ({"max_gen_toks": 10**6}, "max_gen_toks is 1000000; it must be below max_length"),
        ({"do_sample": True, "top_p": 2.0}, "top_p"),
    ],
)
def test_generation_that_is_refused(toy, settings, message):
    with pytest.raises(ValueError, match=message):
        model(toy).generate_until(asked("generate_until", ("a", {"until": [], **settings})))


def test_what_is_refused_costs_no_work(toy, monkeypatch):
    monkeypatch.setattr(Reader, "write", None)
    later = asked("generate_until", ("a", {"max_gen_toks": 3}), ("a", {"max_gen_toks": 3, "num_beams": 4}))
    with pytest.raises(ValueError, match="num_beams"):
        model(toy).generate_until(later)


def test_results_say_what_was_run(toy):
    about = model(toy, budget=0.5, policy="h2o:recent=1+sinks=1").get_model_info()
    assert about["policy"] == "h2o:sinks=1,recent=1" and about["budget"] == 0.5 and about["rolling"] == "state"
    assert {"model_sha", "versions", "device", "max_length"} <= about.keys()


def test_later_versions_of_the_harness_find_the_model():
    """They know the entry point before the class says its name: both must name the class alike."""
    (found,) = importlib.metadata.entry_points(group="lm_eval.models", name="msrnn")
    names = Registry("models of a later version")
    names.register("msrnn", target=found.value)
    names.register("msrnn")(MultiStateLM)
    assert names.get("msrnn") is MultiStateLM


def test_how_texts_are_judged_is_said(toy, caplog):
    caplog.set_level("INFO", "lm_eval")
    model(toy).loglikelihood_rolling(asked("loglikelihood_rolling", ("a",), ("",)))
    assert "rolling=state, one state reads all of it" in caplog.text


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The toy with a tokenizer that puts BOS, here the letter U, before every text."""
    path = pathlib.Path(make_toy(tmp_path_factory.mktemp("begun") / "toy", CONFIG))
    backend = Tokenizer.from_file(str(path / "tokenizer.json"))
    bos = backend.token_to_id("U")
    backend.post_processor = processors.TemplateProcessing(single="U $A", special_tokens=[("U", bos)])
    backend.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"bos_token_id": bos, "eos_token_ids": [3]}))
    return str(path)


def test_bos_stands_once_before_a_text_and_is_not_foreseen(begun):
    lm = model(begun)
    bos, plain = lm.reader.tokenizer.bos, lm.reader.tokenizer.encode("a dog", special=False)
    assert lm.prefix_token_id == bos
    assert lm.tok_encode("a dog") == lm.tok_encode("Ua dog") == [bos, *plain]
    (total,) = lm.loglikelihood_rolling(asked("loglikelihood_rolling", ("a dog",)))
    ((again, _),) = lm.loglikelihood(asked("loglikelihood", ("", "a dog")))
    assert total == pytest.approx(stepped(lm, [bos], plain, 6)[0], abs=1e-4) and again == pytest.approx(total, abs=1e-5)


ON_A_MESH = """
from lm_eval.api.instance import Instance
from msrnn_jax.lm_eval import MultiStateLM

pairs = json.loads(sys.argv[2])
lm = MultiStateLM(sys.argv[1], budget=6, batch_size=4, mesh="data=2+model=3")
judged = lm.loglikelihood([Instance("loglikelihood", {}, tuple(pair), 0) for pair in pairs])
written = lm.generate_until([Instance("generate_until", {}, (pair[0], {"max_gen_toks": 5}), 0) for pair in pairs])
print(json.dumps([judged, written]))
"""


def test_a_mesh_finds_the_same(toy):
    judged, written = json.loads(on_devices(ON_A_MESH, toy, json.dumps(PAIRS), quick=True).splitlines()[-1])
    lm = model(toy, batch_size=4)
    expected = lm.loglikelihood(asked("loglikelihood", *PAIRS))
    np.testing.assert_allclose([total for total, _ in judged], [total for total, _ in expected], rtol=1e-4)
    requests = asked("generate_until", *[(context, {"max_gen_toks": 5}) for context, _ in PAIRS])
    assert written == lm.generate_until(requests)
