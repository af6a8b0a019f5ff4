"""Benchmark tasks: questions as in their files, likelihoods as the logits say, and rules."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s7jax import runtime
from s7jax.errors import InputError, UsageError
from s7jax.integer.logprobs import BITS
from s7jax.mesh import single
from s7jax.model import parameters
from s7jax.model.language_model import expert_output, head, router_logits, trunk_output
from s7jax.model.routing import route
from s7jax.runtime.replay import by_specification
from s7jax.tasks import sandbox
from s7jax.tasks.local import TASKS
from s7jax.tasks.scorers import FloatScorer, SealedScorer
from tests.conftest import TINY
from tests.hub.conftest import vocabulary  # noqa: F401 a fixture
from tests.runtime.conftest import seal, sealed  # noqa: F401 fixtures

FILES = {
    "math/gsm8k_test_400.jsonl": [{"question": "1 + 1?", "answer": "1 + 1 = 2\n#### 2"}] * 3,
    "math/svamp.json": [{"Body": "Two and two.", "Question": "How many?", "Answer": 4.0}],
    "math/aqua_dev.jsonl": [
        {"question": "What?", "options": ["A)7", "B)8 (m)"], "rationale": "", "correct": "B"}
    ],
    "reasoning/bbh/navigate.json": {
        "canary": "…",
        "examples": [{"input": "Left?", "target": "Yes"}, {"input": "Right?", "target": "No"}],
    },
    "reasoning/strategyqa_dev.json": [{"question": "Is it?", "answer": True, "facts": []}],
    "code/humaneval.jsonl": [
        {
            "prompt": "def two():\n",
            "canonical_solution": "    return 2\n",
            "test": "def check(f):\n    assert f() == 2\n",
            "entry_point": "two",
        }
    ],
    "code/mbpp_validation.jsonl": [
        {
            "text": "Write two.",
            "code": "def two():\r\n  return 2",
            "test_setup_code": "",
            "test_list": ["assert two() == 2"],
        }
    ],
    "general/mmlu_dev.jsonl": [{"question": "Who?", "choices": ["I", "you"], "answer": 1}],
}


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        path = tmp_path / "eval" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = content if path.suffix == ".jsonl" else [content]
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    text = " \n = One = \n \n It is . \n = = Part = = \n More . \n \n = Two = \n \n That . \n"
    (tmp_path / "eval/general/wikitext2_valid.txt").write_text(text)
    return tmp_path / "eval"


def test_questions_are_asked_in_one_form(folder):
    items = {
        name: task.read(folder)
        for name, task in TASKS.items()
        if (folder / task.domain / task.pattern).exists()
    }
    assert items["gsm8k"][0] == {
        "query": "Question: 1 + 1?\nAnswer:", "answer": " 1 + 1 = 2\n#### 2"
    }  # fmt: skip
    assert items["svamp"][0]["query"] == "Question: Two and two. How many?\nAnswer:"
    assert items["svamp"][0]["answer"] == " 4"
    assert (items["aqua"][0]["choices"], items["aqua"][0]["gold"]) == ([" 7", " 8 (m)"], 1)
    assert [item["gold"] for item in items["bbh_navigate"]] == [1, 0]
    assert items["bbh_navigate"][0]["choices"] == [" No", " Yes"]
    assert items["strategyqa"][0]["gold"] == items["mmlu"][0]["gold"] == 1
    assert len(items["wikitext2"]) == 2
    assert len(TASKS["gsm8k"].read(folder, 2)) == 2


@pytest.mark.parametrize("text", ["{", '{"question": 1}\n', "[]\n"])
def test_a_file_that_is_no_task_is_named(folder, text):
    (folder / "general/mmlu_dev.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"mmlu_dev\.jsonl: not the questions of mmlu"):
        TASKS["mmlu"].read(folder)


def test_programs_say_who_is_right(folder, monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 1)
    answers = {
        "humaneval": ("    return 2\n\nprint(two())\n", "    return 3\n"),
        "mbpp": ("def two():\n  return 2\n", "two = None\n"),
        "gsm8k": (" so it is\n#### 2.", "#### 3"),
    }
    for name, (right, wrong) in answers.items():
        item = TASKS[name].read(folder)[0]
        assert sandbox.ends_well(TASKS[name].program(item, right))
        for bad in (wrong, "", "    while True: pass\n" if name == "humaneval" else "\0"):
            assert not sandbox.ends_well(TASKS[name].program(item, bad))


@pytest.mark.parametrize(
    "program",
    [
        "x = bytearray(1 << 31)",
        "open('x', 'wb').write(bytes(1 << 21))",
        "import os; os.environ['SECRET']",
    ],
)
def test_programs_are_held_to_limits(program, monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    assert not sandbox.ends_well(program)


@pytest.fixture(scope="module")
def scorer(vocabulary):  # noqa: F811
    return float_scorer(vocabulary)


def float_scorer(tokenizer):
    params = parameters.initial(TINY.model, 0, single())
    rng = np.random.default_rng(0)

    def shake(x):
        return jax.device_put(x + rng.normal(0, 0.05, x.shape).astype(np.float32), x.sharding)

    params = jax.tree.map(shake, params)
    params["router"]["bias"] *= 0  # so that the router chooses by what it reads
    return FloatScorer(TINY.model, params, tokenizer, single())


def logits_of(scorer, row):
    """Of every position by the expert that is routed to it, float64 [T, V]; and which that is."""
    cfg, params = TINY.model, scorer._params
    with jax.set_mesh(single()):
        h = trunk_output(cfg, params, jnp.array([row]))
        chosen = np.asarray(route(router_logits(cfg, params, h), cfg.routing_window))[0]
        every = [head(cfg, params, expert_output(cfg, params[f"expert{e}"], h)) for e in range(4)]
    return np.stack([np.asarray(x[0], np.float64) for x in every])[chosen, range(len(row))], chosen


@pytest.mark.long(minutes=0.2)
def test_float_scores_are_those_of_the_routed_logits(scorer):
    rows = [[0, *np.random.default_rng(n).integers(1, 320, n)] for n in (1, 30, 7)]
    routes = set()
    for row, found in zip(rows, scorer.score(rows), strict=True):
        logits, chosen = logits_of(scorer, row)
        routes |= set(chosen.tolist())
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        wanted = logprobs[range(len(row) - 1), row[1:]]
        assert np.allclose(found.logprobs, wanted, atol=1e-4)
        assert (found.likeliest == (logits[:-1].argmax(-1) == row[1:])).all()
    assert len(routes) > 1


@pytest.mark.long(minutes=0.2)
def test_what_is_likeliest_is_written(scorer):
    prompts = [[0, 5, 6], [0, *range(1, 20)]]
    for ids, text in zip(prompts, scorer.complete(prompts, 3), strict=True):
        row = list(ids)
        for _ in range(3):
            row.append(int(logits_of(scorer, row)[0][-1].argmax()))
        assert scorer.tokenizer.decode(row[len(ids) :]).decode(errors="replace") == text


def test_sealed_scores_are_those_of_the_specification(seal):  # noqa: F811
    scorer = SealedScorer(runtime.Model(seal))
    rows = [[0, *np.random.default_rng(n).integers(1, 250, n)] for n in (1, 40, 62)]
    assert scorer.context == 63
    for row, found in zip(rows, scorer.score(rows), strict=True):
        _, _, logits = by_specification(seal)(np.array(row[:-1], np.int32), 0)
        x = logits / 2.0**16
        wanted = (x - np.log(np.exp(x).sum(1, keepdims=True)))[range(len(row) - 1), row[1:]]
        assert np.allclose(found.logprobs, wanted, atol=4 / 2**BITS + 1e-4)
        assert (found.likeliest == (logits.argmax(1) == row[1:])).all()
    assert scorer.complete([[0, 5]], 3) == [scorer._model.generate([0, 5], max_new_tokens=3).text]


@pytest.mark.long(minutes=1)
@pytest.mark.filterwarnings("ignore")
def test_float_and_sealed_model_on_every_task(folder, scorer, sealed):  # noqa: F811
    pytest.importorskip("lm_eval", reason="pip install 's7jax[eval]'")
    from s7jax.tasks.comparison import compare

    other = SealedScorer(runtime.open(sealed))
    report = compare({"FP32": scorer, "INT8": other}, folder, most=2, execute=True)
    assert set(report["tasks"]) == {
        *("humaneval", "mbpp", "gsm8k", "svamp", "aqua", "bbh_navigate", "strategyqa", "mmlu"),
        "wikitext2",
    }
    for name, row in report["tasks"].items():
        for form in ("FP32", "INT8"):
            assert row[form]["bits_per_byte"] > 0
            assert ("margin" in row[form]) == ("choices" in TASKS[name].read(folder)[0])
            assert ("executed" in row[form]) == (name in ("humaneval", "mbpp", "gsm8k"))
    row, scores = report["tasks"]["aqua"]["INT8"], {}
    item = TASKS["aqua"].read(folder)[0]
    before = [0, *other.tokenizer.encode(item["query"])]
    for choice in item["choices"]:
        after = other.tokenizer.encode(item["query"] + choice)[len(before) - 1 :]
        scores[choice] = other.score([[*before, *after]])[0].logprobs[-len(after) :].sum()
    assert row["margin"] == pytest.approx(scores[" 8 (m)"] - scores[" 7"])
    assert row["accuracy"] == (row["margin"] > 0)
    assert row["bits_per_byte"] == pytest.approx(-scores[" 8 (m)"] / 6 / np.log(2))
    perplexity = report["rules"][1]
    assert perplexity["verdict"] == ("PASS" if perplexity["ratio"] <= 1.02 else "FAIL")
    with pytest.raises(UsageError, match="no task 'mlu'"):
        compare({"FP32": scorer}, folder, ["mlu"])
    with pytest.raises(InputError, match="none of the tasks is there"):
        compare({"FP32": scorer}, folder / "math")


@pytest.mark.parametrize(
    ("full", "small", "verdict"),
    [(0.5, 0.45, "PASS"), (0.5, 0.4, "FAIL"), (0.0, 0.0, "not measured")],
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.long(minutes=0.1)
def test_the_rules_are_those_of_the_specification(full, small, verdict):
    pytest.importorskip("lm_eval", reason="pip install 's7jax[eval]'")
    from s7jax.tasks.comparison import rules

    row = {"domain": "code", "FP32": {"accuracy": full}, "INT8": {"accuracy": small}}
    assert rules({"mbpp": row})[0]["verdict"] == verdict
    math = {"domain": "math", "FP32": {"perplexity": 10.0}, "INT8": {"perplexity": 10.2 + full}}
    assert rules({"svamp": math})[1]["verdict"] == ("FAIL" if full else "PASS")


@pytest.mark.long(minutes=0.2)
@pytest.mark.filterwarnings("ignore")
def test_lm_eval_asks_whole_texts_and_stops_where_it_says(sealed):  # noqa: F811
    pytest.importorskip("lm_eval", reason="pip install 's7jax[eval]'")
    from lm_eval.api.instance import Instance

    from s7jax.tasks.harness import Harness

    model = runtime.open(sealed)
    scorer, text = SealedScorer(model), "It was a dark night and " * 20
    lm = Harness(scorer)
    ids, total = [int(i) for i in model.tokenizer.encode(text)], 0.0
    for first in range(0, len(ids), 62):  # windows of 62 tokens; the last has more before it
        piece = ids[first : first + 62]
        before = ids[:first][-(63 - len(piece)) :] if first else [0]
        total += scorer.score([[*before, *piece]])[0].logprobs[-len(piece) :].sum()
    asked = Instance("loglikelihood_rolling", {}, (text,), 0)
    assert lm.loglikelihood_rolling([asked]) == [pytest.approx(total, rel=1e-6)]
    wanted = model.generate("One", max_new_tokens=9).text
    stop = wanted[3]
    asked = Instance("generate_until", {}, ("One", {"until": [stop], "max_gen_toks": 9}), 0)
    assert lm.generate_until([asked]) == [wanted.split(stop)[0]]
