"""The sealed model at work: answers in every domain, one of them proven and computed again."""

import codecs
import itertools
from collections.abc import Iterator
from typing import Any

from s7jax import runtime, s7l
from s7jax.data.mixture import held_out
from s7jax.runtime import evidence
from s7jax.runtime.model import Answer, Model
from s7jax.runtime.replay import by_specification, replay
from s7jax.storage import write_json
from s7jax.train.folder import remembered
from s7jax.train.run import Run

SAMPLES = 10
PROMPT, ANSWER = 16, 64  # tokens
HOW = {"temperature": 0.75, "top_p": 0.9375, "seed": 0}


def prove(run: Run) -> dict[str, Any]:
    """Ask the run's sealed model, prove the first answer, compute it again, check every rule.

    Prompts are the first words of held-out documents. The proof is ``model/sample.s7p``. Also
    written to ``samples.json``, where it is taken from if it is of this very seal.

    Raises:
        InputError: an answer that is not the same when it is computed again.
    """
    folder, seal = run.folder, s7l.open(run.folder.sealed)
    saved = remembered(folder.samples)
    if saved.get("root") == seal.root.hex():
        print(f"samples: already there, {folder.samples}")
        return saved
    context, prompts = run.config.model.context, list(_prompts(run))
    most = min(ANSWER, context - context // 4 - 2)
    with runtime.open(folder.sealed) as model:
        texts = [text for _, text in prompts]
        answers = model.generate_all(texts, max_new_tokens=most, **HOW)
        samples = [
            {"domain": domain, "prompt": text.decode(errors="replace"), "parts": _parts(model, one)}
            for (domain, text), one in zip(prompts, answers, strict=True)
        ]
        proof = answers[0].proof
    proof.save(folder.proof)
    report = evidence.check(seal, s7l.check(seal))
    result = {
        "root": seal.root.hex(),
        "samples": samples,
        "replayed": replay(proof, seal, by_specification(seal)),
        "rules": [{**vars(finding)} for finding in report.findings],
    }
    write_json(folder.samples, result)
    return result


def _prompts(run: Run) -> Iterator[tuple[str, bytes]]:
    """Domain and first words of held-out documents, the domains in turn."""
    domains, tokenizer = run.config.model.domains, run.prepared.tokenizer
    length = min(PROMPT, run.config.model.context // 4)
    each = -(-SAMPLES // len(domains))
    rows = {domain: held_out(run.prepared, domain, each) for domain in domains}
    for number, domain in itertools.islice(itertools.product(range(each), domains), SAMPLES):
        row = rows[domain][number % len(rows[domain])].tolist()
        start = row.index(tokenizer.eod) + 1 if tokenizer.eod in row[: -length - 1] else 0
        words = itertools.takewhile(lambda token: token != tokenizer.eod, row[start:])
        yield domain, tokenizer.decode(itertools.islice(words, length))


def _parts(model: Model, answer: Answer) -> list[dict[str, str]]:
    """The text of an answer by the expert that wrote it; none ends inside a character."""
    completion, decoder = answer.completion, codecs.getincrementaldecoder("utf-8")("replace")
    domains, parts = model.compute.cfg.domains, []
    pairs = zip(completion.experts, completion.output, strict=True)
    for expert, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
        text = decoder.decode(model.tokenizer.decode(token for _, token in group))
        parts.append({"domain": domains[expert], "text": text})
    if parts:
        parts[-1]["text"] += decoder.decode(b"", final=True)
    return parts
