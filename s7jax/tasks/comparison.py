"""Tasks of a folder, asked of the float model and of the sealed one: one table, three rules."""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"  # read when lm-eval imports it
import datasets
from lm_eval import evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from s7jax.errors import InputError, UsageError
from s7jax.tasks.harness import Harness
from s7jax.tasks.local import TASKS, Item, Task
from s7jax.tasks.sandbox import ends_well
from s7jax.tasks.scorers import Scorer
from s7jax.terminal.progress import Progress

FORMS = ("FP32", "INT8")


def chosen(names: Sequence[str]) -> list[Task]:
    """Tasks by name, or all.

    Raises:
        UsageError: there is no such task.
    """
    for name in names:
        if name not in TASKS:
            raise UsageError(f"no task {name!r}; expected some of {', '.join(TASKS)}")
    return [TASKS[name] for name in names or TASKS]


def compare(
    scorers: Mapping[str, Scorer],
    folder: Path,
    names: Sequence[str] = (),
    most: int | None = None,
    execute: bool = False,
) -> dict[str, Any]:
    """The report, as JSON types.

    Args:
        scorers: FP32 and INT8.
        folder: the tasks' files, by domain.
        names: of tasks; all that are there, if none.
        most: items of each task, the first.
        execute: also let answers be written, and run the programs among them.

    Returns:
        ``tasks``: by name ``domain``, ``items``, and for each form ``accuracy`` and
        ``accuracy_stderr`` (of choices: the likeliest is right; of answers: each token is the
        likeliest), ``margin`` (nats by which the right choice is likelier than the best other),
        ``bits_per_byte`` and ``perplexity`` of right answers, ``executed``, as far as there are
        such; ``rules``: those of the specification (§5).

    Raises:
        UsageError: an unknown task.
        InputError: a file that is no such task, or none at all.
    """
    wanted = [
        task for task in chosen(names) if names or (folder / task.domain / task.pattern).exists()
    ]
    if not wanted:
        raise InputError(
            f"{folder}: none of the tasks is there; expected such as "
            f"{folder / 'math/gsm8k_test_400.jsonl'}"
        )
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it says much, and draws its own bars
    report: dict[str, Any] = {}
    with Progress("tasks", len(wanted) * len(scorers), "tasks") as progress:
        for task in wanted:
            items = task.read(folder, most)
            row: dict[str, Any] = {"domain": task.domain, "items": len(items)}
            for form, scorer in scorers.items():
                row[form] = measured(task, items, scorer)
                if execute and task.program is not None:
                    row[form]["executed"] = executed(task, items, scorer)
                progress.advance(1, task.name)
            report[task.name] = row
    return {"tasks": report, "rules": rules(report)}


def measured(task: Task, items: Sequence[Item], scorer: Scorer) -> dict[str, float]:
    """One task of one model, by lm-evaluation-harness."""
    kind = next(k for k in ("choices", "answer", "text") if k in items[0])
    config: dict[str, Any] = {
        "task": task.name,
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(list(items))},
        "test_split": "test",
        "target_delimiter": "",
        "num_fewshot": 0,
        **_CONFIGS[kind],
    }
    found = evaluate(
        Harness(scorer),
        {task.name: ConfigurableTask(config=config)},
        bootstrap_iters=100,  # 0: no standard errors, not even those that need no bootstrap
    )
    results, samples = found["results"][task.name], found["samples"][task.name]
    if kind == "text":
        return {"bits_per_byte": results["bits_per_byte,none"]}
    told = {"accuracy": results["acc,none"], "accuracy_stderr": results["acc_stderr,none"]}
    likely = [[pair[0] for pair in sample["filtered_resps"]] for sample in samples]
    right = [items[s["doc_id"]].get("gold", 0) for s in samples]
    nats = -sum(choices[gold] for choices, gold in zip(likely, right, strict=True))
    answers = [
        item["choices"][item["gold"]] if kind == "choices" else item["answer"] for item in items
    ]
    size = sum(len(answer.encode()) for answer in answers)
    tokens = sum(len(scorer.tokenizer.encode(answer)) for answer in answers)
    if kind == "choices":
        margins = [
            choices[gold] - max(choices[:gold] + choices[gold + 1 :])
            for choices, gold in zip(likely, right, strict=True)
        ]
        told["margin"] = sum(margins) / len(margins)
    return told | {
        "bits_per_byte": nats / size / math.log(2),
        "perplexity": math.exp(nats / tokens),
    }


_CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "query",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}],
    },
    "answer": {
        "output_type": "loglikelihood",
        "doc_to_text": "query",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    },
    "text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
}


def executed(task: Task, items: Sequence[Item], scorer: Scorer) -> float:
    """The share of items whose program ends well with the answer that the model writes."""
    assert task.program is not None
    asked = [(item["query"], {"max_gen_toks": scorer.context // 2}) for item in items]
    answers = Harness(scorer).generate_until(
        [Instance("generate_until", {}, pair, i) for i, pair in enumerate(asked)]
    )
    programs = (task.program(*pair) for pair in zip(items, answers, strict=True))
    return sum(map(ends_well, programs)) / len(items)


def rules(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The three rows of the specification's table (§5), by what was measured.

    Accuracies are compared where FP32 has any. Where it has none, as models of this size may,
    nothing can be kept of it: the row has no verdict, and likelihoods are beside it.
    """

    def mean(of: Sequence[str], form: str, what: str) -> float | None:
        found = [report[n][form][what] for n in of if what in report[n][form]]
        return sum(found) / len(found) if found else None

    code = [n for n, row in report.items() if row["domain"] == "code" or n == "gsm8k"]
    math_ = [n for n, row in report.items() if row["domain"] == "math"]
    reason = [n for n, row in report.items() if row["domain"] == "reasoning"]
    rows = []
    for name, of, what, least in (
        ("code and GSM8K at least 0.90 of FP32", code, "accuracy", 0.90),
        ("math perplexity at most 1.02 of FP32", math_, "perplexity", 1.02),
        ("reasoning at least 0.88 of FP32", reason, "accuracy", 0.88),
    ):
        full, small = (mean(of, form, what) for form in FORMS)
        ratio = small / full if full and small is not None else None
        good = None if ratio is None else ratio <= least if what == "perplexity" else ratio >= least
        rows.append(
            {
                "rule": name,
                "of": of,
                "FP32": full,
                "INT8": small,
                "ratio": ratio,
                "verdict": "not measured" if good is None else "PASS" if good else "FAIL",
            }
        )
    return rows
