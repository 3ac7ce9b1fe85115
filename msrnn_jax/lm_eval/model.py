"""The interface between lm-evaluation-harness and a `Reader`."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from msrnn_jax.checkpoint.identity import config_hash, fingerprint
from msrnn_jax.checkpoint.load import load_onto
from msrnn_jax.checkpoint.tokenizer import load_tokenizer
from msrnn_jax.cli.loading import read_policy
from msrnn_jax.devices.sharding import parse_mesh
from msrnn_jax.generation.sampling import Sampler
from msrnn_jax.io.environment import keep_compilations
from msrnn_jax.io.provenance import json_hash, provenance
from msrnn_jax.lm_eval.arguments import check_batch, check_budget, sampler_of, with_commas
from msrnn_jax.lm_eval.reader import Pair, Reader
from msrnn_jax.model.prefill import check_mode
from msrnn_jax.policies.source import source_hash
from msrnn_jax.recurrence.checks import check_int
from msrnn_jax.text.tokenizer import ENDS, MARK

ROLLING = ("state", "windows")

log = logging.getLogger("lm_eval.models.msrnn")  # below the harness's own, whose level counts


@register_model("msrnn")
class MultiStateLM(TemplateLM):
    """A checkpoint of this library as a model of lm-evaluation-harness.

    Contexts are read into a state of bounded size. A continuation is judged, or written, from that state, which goes on
    forgetting. Requests with the same context share one reading of it.
    """

    def __init__(
        self,
        pretrained: str,
        policy: str = "tova",
        budget: int | float = 256,
        prompt_policy: str | None = None,
        mode: str = "stepwise",
        positions: str = "absolute",
        rolling: str = "state",
        max_length: int | None = None,
        dtype: str | None = None,
        mesh: str | None = None,
        seed: int = 0,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **unknown: Any,
    ):
        """Loads a checkpoint; the harness calls this with --model_args.

        Args:
          pretrained: folder made by `msrnn convert`.
          policy: as on the command line, such as "tova" or "window:sinks=4". A comma ends an argument of the harness;
            for several options of a policy write a plus: "h2o:recent=1+sinks=4".
          budget: tokens that each layer remembers; or a share of the context, above 0 and up to 1.0, rounded up (of the
            text or window, where a whole text is judged), but never less than what the policies protect.
          prompt_policy: what forgets while contexts are read; `policy` then goes on with what is left.
          mode: how contexts are read, "stepwise" or "oneshot", as in `prefill`.
          positions: how keys are rotated, as in `init_state`.
          rolling: how a whole text is judged. "state": each token from a state that has read all before it. "windows":
            in windows of `max_length` tokens that know nothing of each other, as the harness's own models do.
          max_length: longer contexts lose their beginning. By default what the model was trained with under the
            positions "absolute", and no limit under others.
          dtype: the weights are cast to it.
          mesh: devices that share the work, as in `parse_mesh`, with a plus for the comma: "data=2+model=2".
          seed: of draws, where a task asks for them.
          batch_size: contexts at once, or "auto": as many as fit.
          max_batch_size: the most that "auto" takes.
          device: not used; JAX chooses, see JAX_PLATFORMS.

        Raises:
          ValueError: for an argument out of its range, naming it, and for a checkpoint that cannot be used.
        """
        super().__init__()
        del device
        for name in unknown:
            raise ValueError(f"model argument {name!r} is unknown; within a policy, write a plus for a comma")
        keep_compilations()
        devices = None if mesh is None else parse_mesh(with_commas(mesh))
        config, params = load_onto(devices, str(pretrained), dtype)
        check_mode(mode)
        if rolling not in ROLLING:
            raise ValueError(f"rolling is {rolling!r}; it must be one of {', '.join(ROLLING)}")
        self.rolling = rolling
        self.seed = check_int("seed", seed, 0, 2**32 - 1)
        self._limit = config.max_length if max_length is None and positions == "absolute" else max_length
        if self._limit is not None:
            check_int("max_length", self._limit, 2)
        self.reader = Reader(
            config=config,
            params=params,
            tokenizer=load_tokenizer(str(pretrained)),
            policy=read_policy(with_commas(policy), config),
            prompt_policy=None if prompt_policy is None else read_policy(with_commas(prompt_policy), config),
            budget=check_budget(budget),
            mode=mode,
            positions=positions,
            batch=check_batch(batch_size, devices),
            most=None if max_batch_size is None else check_int("max_batch_size", max_batch_size, 1),
            mesh=devices,
        )
        self.reader.check()

    @property
    def max_length(self) -> int:
        """The most tokens of a request that are read."""
        return self.reader.config.max_length if self._limit is None else self._limit

    @property
    def eot_token_id(self) -> int:
        """The first token that ends a text."""
        if not self.reader.tokenizer.stop:
            raise ValueError("the tokenizer has neither BOS nor EOS; one of them must stand before a text")
        return self.reader.tokenizer.stop[0]

    @property
    def prefix_token_id(self) -> int:
        """What goes before a text that has nothing before it: BOS, or else what ends a text."""
        tokenizer = self.reader.tokenizer
        named = (tokenizer.backend.token_to_id(tokenizer.names.get(name, "")) for name in ENDS)
        return next((token for token in named if token is not None), self.eot_token_id)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokens of a text; a BOS that is written out, as chat templates do, is not put there again."""
        del kwargs
        tokenizer = self.reader.tokenizer
        if add_special_tokens is None:
            bos = None if tokenizer.bos is None else tokenizer.backend.id_to_token(tokenizer.bos)
            add_special_tokens = not (bos and string.startswith(bos))
        return tokenizer.encode(string, special=add_special_tokens)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        pairs = [self._cut(context, continuation) for _, context, continuation in requests]
        self._warn_of_shorter([pair.context for pair in pairs], [context for _, context, _ in requests])
        results: list[Any] = [None] * len(requests)
        bar = tqdm(total=len(requests), desc="judging continuations", disable=kwargs.get("disable_tqdm", False))
        for index, judged, is_greedy in self.reader.judge(pairs):
            results[index] = judged, is_greedy
            self.cache_hook.add_partial("loglikelihood", requests[index][0], results[index])
            bar.update()
        bar.close()
        return results

    def _warn_of_shorter(self, contexts: Sequence[Sequence[int]], whole: Sequence[Sequence[int]]) -> None:
        shorter = sum(len(one) < len(other) for one, other in zip(contexts, whole, strict=True))
        if shorter:
            log.warning("%d of %d contexts lose their beginning: max_length=%d", shorter, len(whole), self.max_length)

    def _cut(self, context: Sequence[int], continuation: Sequence[int]) -> Pair:
        """A pair whose context has lost its beginning where both are too long together, as under the harness's `hf`."""
        if not continuation:
            raise ValueError("a continuation has no tokens of its own; it must have at least one")
        if self._limit is None:
            return Pair(tuple(context), tuple(continuation))
        room = self._limit + 1 - len(continuation)
        if room < 1:
            raise ValueError(f"a continuation has {len(continuation)} tokens; max_length is {self._limit}")
        return Pair(tuple(context[-room:]), tuple(continuation))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """log p of every text in nats, each for itself."""
        about = "one state reads all of it" if self.rolling == "state" else f"windows of {self.max_length} tokens"
        log.info("log-likelihoods of whole texts: rolling=%s, %s", self.rolling, about)
        totals, missing, pairs, owners = [0.0] * len(requests), Counter(), [], []
        for index, request in enumerate(requests):
            own = list(self._windows(request.args[0]))
            pairs += own
            owners += [index] * len(own)
            missing[index] = len(own)
        longest, known = max((len(pair.continuation) for pair in pairs), default=0), self.reader.config.max_length
        if self.reader.positions == "absolute" and longest > known:
            log.warning("a text has %d tokens, but the model was trained with %d: try positions=cache", longest, known)
        bar = tqdm(total=len(pairs), desc=f"judging texts, rolling={self.rolling}", disable=disable_tqdm)
        for place, judged, _ in self.reader.judge(pairs, whole=True):
            index = owners[place]
            totals[index] += judged
            missing[index] -= 1
            if not missing[index]:
                self.cache_hook.add_partial("loglikelihood_rolling", requests[index].args, totals[index])
            bar.update()
        bar.close()
        return totals

    def _windows(self, text: str) -> Iterator[Pair]:
        if self.rolling == "state":
            tokens = self.tok_encode(text, add_special_tokens=False)
            if tokens:
                yield Pair((self.prefix_token_id,), tuple(tokens))
            return
        tokens = self.tok_encode(text)  # a BOS of the tokenizer's own is foreseen like any token, as by `hf`
        for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1):
            context, continuation = make_disjoint_window(window)
            yield Pair(tuple(context), tuple(continuation))

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continues contexts until one of the task's stop strings, a stop token, or `max_gen_toks`."""
        results = [""] * len(requests)
        groups: dict[str, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            groups[repr(request.args[1])].append(index)
        plans = [self._plan(requests, group) for group in groups.values()]  # all, before any work
        bar = tqdm(total=len(requests), desc="writing", disable=disable_tqdm)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(self.seed), jnp.arange(len(requests)))
        for group, (contexts, sampler, stops, limit) in zip(groups.values(), plans, strict=True):
            for place, text in self.reader.write(contexts, keys[jnp.asarray(group)], sampler, stops, limit):
                results[group[place]] = text
                self.cache_hook.add_partial("generate_until", requests[group[place]].args, text)
                bar.update()
        bar.close()
        return results

    def _plan(
        self, requests: Sequence[Any], group: Sequence[int]
    ) -> tuple[list[tuple[int, ...]], Sampler, list[str], int]:
        """Contexts of requests with the same settings, cut to leave room, and how they are continued."""
        settings: dict[str, Any] = {**normalize_gen_kwargs(dict(requests[group[0]].args[1]), 256)}
        sampler, new = sampler_of(settings), settings["max_gen_toks"]
        if self._limit is not None and new >= self._limit:
            raise ValueError(f"max_gen_toks is {new}; it must be below max_length, {self._limit}")
        room = None if self._limit is None else self._limit - new
        whole = [self.tok_encode(requests[index].args[0]) or [self.prefix_token_id] for index in group]
        contexts = [tuple(tokens if room is None else tokens[-room:]) for tokens in whole]
        self._warn_of_shorter(contexts, whole)
        return contexts, sampler, [string for string in settings["until"] if string], new

    @property
    def tokenizer_name(self) -> str:
        """What the harness's cache of requests tells tokenizers and templates apart by."""
        text = [self.reader.tokenizer.backend.to_str(), self.reader.tokenizer.template, self.reader.tokenizer.names]
        return f"msrnn-{json_hash(text)}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The checkpoint's template, where one is asked for."""
        if isinstance(chat_template, str):
            raise ValueError(f"chat template {chat_template!r}: a checkpoint has one, without a name; leave it out")
        return self.reader.tokenizer.template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation; without a prompt for the answer it ends within its last message."""
        tokenizer = self.reader.tokenizer
        if add_generation_prompt:
            return tokenizer.render(chat_history)
        *before, last = chat_history
        mark = f"{MARK} "  # where a template leaves its blank, it leaves those of the message: as in transformers
        marked = {**last, "content": last["content"] + mark}
        text = tokenizer.render([*before, marked], add_generation_prompt=False)
        if text.count(MARK) != 1:
            raise ValueError("chat template: it changes the last message, so nothing can go on from within it")
        start = text.index(MARK)
        return text[:start] if text.startswith(mark, start) else text[:start].rstrip()

    def get_model_info(self) -> dict[str, Any]:
        """What results say of the model, beside the arguments."""
        reader = self.reader
        code = {str(policy): source_hash(policy) for policy in (reader.policy, reader.prompt_policy) if policy}
        return {
            "policy": str(reader.policy),
            "prompt_policy": None if reader.prompt_policy is None else str(reader.prompt_policy),
            "policy_code": {name: digest for name, digest in code.items() if digest is not None},
            "budget": reader.budget,
            "prompt_mode": reader.mode,
            "positions": reader.positions,
            "rolling": self.rolling,
            "max_length": self._limit,
            "model_dtype": reader.config.dtype,
            "model_sha": fingerprint(reader.config, reader.params),
            "config_sha": config_hash(reader.config),
            **provenance(),
        }
