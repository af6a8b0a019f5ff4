"""What the rules V2, V3, V6, INT8 and CM-1 say about running, shown by running the model."""

import dataclasses
from collections.abc import Callable

import numpy as np

from s7jax import s7l
from s7jax.data.tokenizer import Tokenizer
from s7jax.errors import InputError
from s7jax.native import disassembly
from s7jax.runtime import answers
from s7jax.runtime.compute import Compute, open_compute
from s7jax.runtime.engine import Engine, Request
from s7jax.runtime.gate import GateError
from s7jax.runtime.policy import Policy
from s7jax.runtime.prompt import Prompt, of_ids
from s7jax.runtime.replay import by_specification, replay
from s7jax.runtime.session import Session

_INTEGERS = {"pred", "s8", "s16", "s32", "s64", "u8", "u16", "u32"}
_IDS = (0, 1, 2, 3)


def check(seal: s7l.Seal, report: s7l.Report, engine: str = "auto") -> s7l.Report:
    """The report of :func:`s7jax.s7l.check` with what only a running model can show.

    Asks the model twice on one device.
    """
    compute = open_compute(seal, engine)
    shown: dict[str, Callable[[], str]] = {
        "V2": lambda: _gate(compute),
        "V3": lambda: _proof(compute),
        "V6": lambda: _known_answers(seal),
        "INT8": lambda: _types(_taken_apart(compute)),
        "CM-1": lambda: _gate(compute),
    }
    findings = [_with(finding, shown.get(finding.rule)) for finding in report.findings]
    return dataclasses.replace(report, findings=tuple(findings))


def _with(finding: s7l.Finding, show: Callable[[], str] | None) -> s7l.Finding:
    """A finding with the evidence of a run instead of what it could not check."""
    if show is None or finding.verdict is s7l.Verdict.FAIL:
        return finding
    seen = "; ".join(part for part in finding.evidence.split("; ") if "not checked" not in part)
    try:
        verdict, evidence = s7l.Verdict.PASS, show()
    except InputError as e:
        verdict, evidence = s7l.Verdict.FAIL, str(e)
    return s7l.Finding(finding.rule, verdict, f"{seen}; {evidence}" if seen else evidence)


def _gate(compute: Compute) -> str:
    """Every compute entry refuses no gate and a spent one."""
    session = Session(compute)
    spent = session.begin(Prompt(_IDS), Policy())
    session.close("client")
    start, tokens, h = np.zeros(1, np.int32), np.zeros((1, 1), np.int32), compute.history(1, 1)
    for gates in ([], [spent]):
        for name, call in {
            "trunk": lambda g: compute.trunk(g, tokens, start, compute.trunk_cache(1, 2)),
            "expert": lambda g: compute.expert(g, 0, h, start, compute.expert_cache(0, 1, 2)),
            "head": lambda g: compute.head(g, h),
        }.items():
            try:
                call(gates)
            except GateError:
                continue
            raise InputError(f"{name} computed without a valid gate")
    return "trunk, expert and head refused no gate and the spent gate of a closed session"


def _proof(compute: Compute) -> str:
    """An answer carries seal and trace."""
    seal, engine = compute.seal, Engine(compute)
    prompt = of_ids(Tokenizer.from_vocabulary(seal.vocabulary.file_tree()), _IDS)
    found = engine.submit(Request(prompt, Policy(max_new_tokens=2)))
    engine.run()
    if found.proof is None or found.proof.head["root"] != seal.root:
        raise InputError("an answer came without a proof of this seal")
    replay(found.proof, seal, by_specification(seal))
    return (
        f"an answer of {len(found.output)} tokens carried this root and trace "
        f"{found.proof.chain.hex()}, and was the same when computed again"
    )


def _known_answers(seal: s7l.Seal) -> str:
    """The sealed transcript, given again."""
    known = seal.stream["answers"]
    if not known:
        return "sealed without known answers: identical logits not shown"
    answers.check(known, by_specification(seal))
    steps = sum(len(answer["output"]) for answer in known)
    return f"logits and tokens of {steps} known answers identical"


def _taken_apart(compute: Compute) -> Compute:
    """The model on an engine whose programs can be looked into."""
    look = not compute.engine.startswith("native") or disassembly.possible()
    return compute if look else open_compute(compute.seal, "xla")


def _types(compute: Compute) -> str:
    """Types of numbers in the compiled programs."""
    seen = compute.types()
    if seen - _INTEGERS:
        raise InputError(f"the compiled program has {', '.join(sorted(seen - _INTEGERS))}")
    return f"compiled prefill and decode ({compute.engine}) hold {', '.join(sorted(seen))} alone"
