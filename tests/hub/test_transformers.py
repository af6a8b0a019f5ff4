"""The exported model in transformers is the model: logits, routes, cache, generation, scores."""

import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s7jax.hub.export import export
from s7jax.hub.restore import restore
from s7jax.mesh import single
from s7jax.model.language_model import (
    expert_output,
    head,
    router_logits,
    trunk_output,
)
from s7jax.model.routing import route
from s7jax.runs.inspection import differences, read
from s7jax.train.finished import Finished
from s7jax.train.folder import RunFolder
from tests.hub.conftest import CONFIGS, make_run

pytestmark = pytest.mark.long(minutes=1)

CLOSE = 1e-4  # of logits


@pytest.fixture(scope="module")
def torch():
    pytest.importorskip("transformers", reason="pip install 's7jax[long]'")
    found = pytest.importorskip("torch", reason="pip install 's7jax[long]'")
    with found.no_grad():
        yield found


class Both:
    """One model, in JAX and in transformers."""

    def __init__(self, folder, config, tokenizer):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.config, self.cfg = config, config.model
        self.run = make_run(folder / "run", config, tokenizer)
        self.folder = folder / "hf"
        export(self.run, self.folder)
        experts = [self.run.final(f"expert{e}") for e in range(len(config.domains))]
        finals = Finished.open(self.run.final("trunk"), experts, self.run.final("router"))
        self.params = finals.load(single())
        self.ours = tokenizer
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=True)
        self.model = AutoModelForCausalLM.from_pretrained(self.folder, trust_remote_code=True)
        self.model.eval()

    def tokens(self, rows: int, length: int | None = None) -> np.ndarray:
        rng = np.random.default_rng(1)
        return rng.integers(0, self.cfg.vocab, (rows, length or self.cfg.context))

    def jax(self, tokens) -> tuple[np.ndarray, np.ndarray]:
        """Routed logits [B, T, V] and routes [B, T]; what comes later changes nothing before it."""
        rows, length = np.shape(tokens)
        padded = np.zeros((rows, 1, self.cfg.context), np.int32)
        padded[:, 0, :length] = tokens
        with jax.set_mesh(single()):
            found = [routed(self.cfg, self.params, row) for row in padded]
        logits, routes = (np.concatenate(part)[:, :length] for part in zip(*found, strict=True))
        return logits, routes


@partial(jax.jit, static_argnums=0)
def routed(cfg, params, tokens):
    h = trunk_output(cfg, params, tokens)
    routes = route(router_logits(cfg, params, h), cfg.routing_window)
    experts = (params[f"expert{e}"] for e in range(len(cfg.domains)))
    every = jnp.stack([head(cfg, params, expert_output(cfg, expert, h)) for expert in experts])
    return jnp.take_along_axis(every, routes[None, ..., None], 0)[0], routes


@pytest.fixture(scope="module", params=CONFIGS)
def both(request, torch, tmp_path_factory, vocabulary):
    return Both(tmp_path_factory.mktemp("both"), CONFIGS[request.param], vocabulary)


def test_logits_and_routes_are_those_of_jax(both, torch):
    tokens = both.tokens(3)
    wanted, routes = both.jax(tokens)
    found = both.model(input_ids=torch.tensor(tokens))
    np.testing.assert_array_equal(found.routes, routes)
    assert set(routes.flat) == set(range(len(both.cfg.domains))), "every expert is chosen"
    assert (np.diff(routes) != 0).sum() > 10, "and often another"
    assert found.logits.dtype == torch.float32
    assert np.abs(found.logits.numpy() - wanted).max() <= CLOSE
    assert np.abs(wanted).max() > 1


def test_with_a_cache_each_piece_gives_what_the_whole_does(both, torch):
    tokens = torch.tensor(both.tokens(2))
    whole = both.model(input_ids=tokens)
    cache, done = None, 0
    for size in (1, 7, 1, 1, 5, 1, tokens.shape[1] - 16):
        piece = tokens[:, done : done + size]
        found = both.model(input_ids=piece, past_key_values=cache, use_cache=True)
        expected = whole.logits[:, done : done + size]
        assert (found.logits - expected).abs().max() <= CLOSE
        assert torch.equal(found.routes, whole.routes[:, done : done + size])
        cache, done = found.past_key_values, done + size
    assert done == tokens.shape[1]
    assert whole.past_key_values is None, "unasked there is none"


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(both, torch, side):
    rows = [torch.tensor(row[:n]) for row, n in zip(both.tokens(3), (32, 20, 1), strict=True)]
    spans = [slice(32 - len(r), 32) if side == "left" else slice(0, len(r)) for r in rows]
    for padding in range(12):  # whatever it is made of, and would be routed to
        ids = torch.full((3, 32), padding)
        mask = torch.zeros((3, 32), dtype=torch.long)
        for i, (row, span) in enumerate(zip(rows, spans, strict=True)):
            ids[i, span], mask[i, span] = row, 1
        found = both.model(input_ids=ids, attention_mask=mask, use_cache=bool(padding % 2))
        for i, (row, span) in enumerate(zip(rows, spans, strict=True)):
            alone = both.model(input_ids=row[None])
            assert (found.logits[i, span] - alone.logits[0]).abs().max() <= CLOSE
            assert torch.equal(found.routes[i, span], alone.routes[0])
        assert bool(torch.isfinite(found.logits).all())


def test_what_the_model_does_not_know_is_refused(both, torch):
    ids = torch.tensor(both.tokens(1, 4))
    refused = {
        "padding between tokens": {"attention_mask": torch.tensor([[1, 0, 1, 1]])},
        r"attention_mask is \[1, 3\]": {"attention_mask": torch.ones(1, 3)},
        r"attention_mask is \[1, 1, 4, 4\]": {"attention_mask": torch.ones(1, 1, 4, 4)},
        "position_ids": {"position_ids": torch.arange(4)[None]},
        "output_hidden_states": {"output_hidden_states": True},
    }
    for message, words in refused.items():
        with pytest.raises(ValueError, match=message):
            both.model(input_ids=ids, **words)


def test_generation_is_greedy_jax_with_cache_and_without_alone_and_in_a_batch(both, torch):
    texts = ["If all", "1 + 2 = 3, so", "x"]
    alone = []
    for text in texts:
        ids = [0, *both.ours.encode(text).tolist()]
        start = len(ids)
        while len(ids) < start + 6 and (len(ids) == start or ids[-1]):
            logits, _ = both.jax([ids])
            ids.append(int(logits[0, -1].argmax()))
        inputs = both.tokenizer(text, return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == ids[:start]
        for cached in (True, False):
            made = both.model.generate(
                **inputs, max_new_tokens=6, do_sample=False, use_cache=cached
            )
            assert made[0].tolist() == ids
        alone.append(ids[start:])
    batch = both.tokenizer(texts, return_tensors="pt", padding=True)
    made = both.model.generate(**batch, max_new_tokens=6, do_sample=False)
    width = batch["input_ids"].shape[1]
    for row, ids in zip(made[:, width:].tolist(), alone, strict=True):
        assert row[: len(ids)] == ids
        assert not any(row[len(ids) :]), "padding after the end"


def test_beams_are_the_same_with_a_cache(both, torch):
    inputs = both.tokenizer("If some", return_tensors="pt")
    words = {"max_new_tokens": 8, "num_beams": 4, "do_sample": False}
    cached, plain = (
        both.model.generate(**inputs, **words, use_cache=use).tolist() for use in (True, False)
    )
    assert cached == plain


def test_the_loss_of_labels_is_the_mean_of_their_surprise(both, torch):
    tokens = both.tokens(2)
    logits, _ = both.jax(tokens)
    logprobs = np.asarray(jax.nn.log_softmax(logits.astype(np.float32), axis=-1))
    nll = -np.take_along_axis(logprobs[:, :-1], tokens[:, 1:, None], 2).mean()
    ids = torch.tensor(tokens)
    assert both.model(input_ids=ids, labels=ids).loss.item() == pytest.approx(nll, abs=CLOSE)
    (last,) = both.model(input_ids=ids[:1], logits_to_keep=1).logits
    assert np.abs(last[0].numpy() - logits[0, -1]).max() <= CLOSE


def test_in_bfloat16_it_runs_and_is_near(both, torch):
    from transformers import AutoModelForCausalLM

    half = AutoModelForCausalLM.from_pretrained(
        both.folder, trust_remote_code=True, torch_dtype=torch.bfloat16
    )
    ids = torch.tensor(both.tokens(1, 16))
    found, wanted = half(input_ids=ids, use_cache=True), both.model(input_ids=ids)
    assert found.logits.dtype == torch.float32
    same = found.routes == wanted.routes
    assert same.float().mean() > 0.8
    assert (found.logits - wanted.logits)[same].abs().mean() < 0.1 * wanted.logits.std()


def test_saved_by_transformers_it_comes_back_bit_by_bit(both, torch, tmp_path):
    both.model.save_pretrained(tmp_path / "theirs")
    for name in ("s7jax.json", "tokenizer.json"):
        shutil.copy(both.folder / name, tmp_path / "theirs")
    with pytest.raises(Exception, match=r"nearest_centroid\.bias: missing"):
        restore(tmp_path / "theirs", tmp_path / "again")
    shutil.copy(both.folder / "model.safetensors", tmp_path / "theirs")
    restore(tmp_path / "theirs", tmp_path / "again")
    for name in ("trunk", "expert1", "router"):
        ours, back = (read(run.final(name)) for run in (both.run, RunFolder(tmp_path / "again")))
        assert differences(ours, back) == []


def test_lm_eval_scores_what_the_logits_say(both, torch):
    """Of texts that begin as documents do, in batches of unequal length."""
    pytest.importorskip("lm_eval", reason="pip install 's7jax[long]'")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    words = {"trust_remote_code": True, "device": "cpu", "batch_size": 2, "add_bos_token": True}
    model = HFLM(pretrained=str(both.folder), **words)
    assert model.max_length == both.cfg.context
    pairs = [("If all", " men"), ("2 + 2 =", " 4"), ("", "def f(x)")]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    for (context, text), (found, greedy) in zip(pairs, model.loglikelihood(requests), strict=True):
        ids = np.array([0, *both.ours.encode(context + text)])
        first = 1 + len(both.ours.encode(context))
        logits, _ = both.jax([ids[:-1]])
        logprobs = np.asarray(jax.nn.log_softmax(logits[0, first - 1 :], axis=-1))
        expected = logprobs[np.arange(len(ids) - first), ids[first:]].sum()
        assert found == pytest.approx(expected, abs=1e-3)
        assert greedy == bool((logprobs.argmax(-1) == ids[first:]).all())
