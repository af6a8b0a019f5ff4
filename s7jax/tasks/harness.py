"""A scorer as a model of lm-evaluation-harness (extra ``eval``), for any of its tasks.

from lm_eval import simple_evaluate
simple_evaluate(model=Harness(SealedScorer(s7jax.open("model.s7l"))), tasks=["arc_easy"])
"""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from s7jax.tasks.scorers import Scorer

NOTHING = (0.0, True)  # how likely no token is
MOST = 256  # tokens of an answer, where a task does not say


class Harness(TemplateLM):
    """Likelihoods and continuations of text that begins as documents do."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer

    @property
    def eot_token_id(self) -> int:
        """The end-of-document token."""
        return self.scorer.tokenizer.eod

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Text to ids; nothing is put before them."""
        return [int(i) for i in self.scorer.tokenizer.encode(string)]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Of (context, continuation) pairs: nats, and whether each token was the likeliest."""
        return list(super().loglikelihood(requests, disable_tqdm=True))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        rows, counts = [], []
        for _pair, before, after in requests:
            start = [] if before[:1] == [self.eot_token_id] else [self.eot_token_id]
            row = [*start, *before, *after][-self.scorer.context :]
            rows.append(row)
            counts.append(min(len(after), len(row) - 1))
        scores = zip(self.scorer.score(rows), counts, strict=True)
        return [
            (float(found.logprobs[-n:].sum()), bool(found.likeliest[-n:].all())) if n else NOTHING
            for found, n in scores
        ]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Whole texts, window by window; every token counts once."""
        windows, owners = [], []
        for i, request in enumerate(requests):
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.eot_token_id,
                max_seq_len=self.scorer.context - 1,
                context_len=1,
            ):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(i)
        found = [0.0] * len(requests)
        for i, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            found[i] += logprob
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The likeliest continuations, each up to the first of its stop texts."""
        prompts, most = [], 1
        for text, options in (request.args for request in requests):
            wanted = min(int(options.get("max_gen_toks", MOST)), self.scorer.context // 2)
            ids = [self.eot_token_id, *self.tok_encode(text)]
            prompts.append(ids[-(self.scorer.context - wanted) :])
            most = max(most, wanted)
        found = []
        for text, request in zip(self.scorer.complete(prompts, most), requests, strict=True):
            stops = request.args[1].get("until") or []
            for stop in [stops] if isinstance(stops, str) else stops:
                text = text.split(stop)[0]  # noqa: PLW2901
            found.append(text)
        return found
