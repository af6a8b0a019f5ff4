"""Replay: a proof computed again, and what a person should see of it."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s7jax.data.tokenizer import Tokenizer
from s7jax.errors import InputError, UsageError
from s7jax.integer.sampling import ONE, choose
from s7jax.integer.specification import Watch
from s7jax.runtime import policy as policies
from s7jax.runtime.compute import Forward, Reference
from s7jax.runtime.policy import NATURAL, Policy
from s7jax.runtime.prompt import Prompt
from s7jax.runtime.proof import Proof, Step, begin, hashed, trace_root
from s7jax.runtime.session import Session
from s7jax.s7l import Seal

MOST_LOGITS = 1 << 32  # bytes of logits held at once
MOST_OPERATIONS = 10**14  # of a replay in NumPy: about three hours of one core


def by_specification(seal: Seal) -> Forward:
    """The NumPy specification as an implementation to replay with."""
    reference = Reference(seal)

    def forward(
        tokens_T: NDArray[np.int32], first: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        _affordable(seal, len(tokens_T))
        with Session(reference) as session:
            gate = session.begin(Prompt(tuple(tokens_T.tolist())), Policy())
            return reference.answer(gate, first)

    return forward


def replay(proof: Proof, seal: Seal, forward: Forward) -> dict[str, Any]:
    """Compute a proof again, step by step; what it holds, as JSON types (see :func:`shown`).

    Raises:
        InputError: naming what differs first: a field of the head, a step and its field, the
            end or the answer.
    """
    tokenizer = Tokenizer.from_vocabulary(seal.vocabulary.file_tree())
    prompt, policy = proof.prompt(tokenizer), proof.policy
    dimensions = seal.manifest.dimensions
    count, vocab, context = len(prompt.ids), dimensions.vocab, dimensions.context
    if not 1 <= count < context or not all(0 <= i < vocab for i in prompt.ids):
        raise InputError(
            f"prompt: {count} ids; expected 1 to {context - 1}, each below {vocab}, as sealed"
        )
    room = context - count
    _check_head(proof, seal, prompt, policy, room)
    tokens = np.array([*prompt.ids, *proof.output[:-1]], np.int32)
    if len(proof.steps) > room or (proof.steps and max(proof.output) >= vocab):
        raise InputError(f"steps: more than {room}, or an id that is not below {vocab}")
    if 4 * len(proof.steps) * vocab > MOST_LOGITS:
        raise InputError(f"steps: the logits of {len(proof.steps):,} take more than 4 GiB")
    if proof.steps:
        _check_steps(proof, policy, tokens, count - 1, forward)
    _check_end(proof, policy, room, seal)
    if proof.head["trace"]:
        _check_trace(proof, seal, tokens, count - 1)
    return shown(proof, seal, prompt)


def shown(proof: Proof, seal: Seal, prompt: Prompt) -> dict[str, Any]:
    """What a proof says, for people: text as text, ids only where they are no text."""
    domains, drawn = seal.manifest.dimensions.domains, proof.policy.sampling
    experts = [step.expert for step in proof.steps]
    segments = [(domains[e], len(list(run))) for e, run in itertools.groupby(experts)]
    preset = seal.manifest.provenance.get("config", {})
    return {
        "model": preset.get("preset") if isinstance(preset, dict) else None,
        "root": seal.root.hex(),
        "prompt": {
            "text": None if prompt.text is None else prompt.text.decode(errors="backslashreplace"),
            "ids": None if prompt.text is not None else list(prompt.ids),
            "document_start": prompt.start,
            "tokens": len(prompt.ids),
        },
        "policy": {
            "temperature": drawn.temperature_q16 / ONE,
            "top_k": drawn.top_k,
            "top_p": drawn.top_p_q16 / ONE,
            "seed": drawn.seed,
            "logit_bias": {i: bias / ONE for i, bias in drawn.logit_bias},
            "max_new_tokens": proof.policy.max_new_tokens,
            "stop": list(proof.policy.stop),
            "stop_texts": [t.decode(errors="backslashreplace") for t in proof.policy.stop_texts],
        },
        "answer": proof.answer.decode(errors="backslashreplace"),
        "steps": len(proof.steps),
        "end": proof.end,
        "experts": [{"domain": domain, "tokens": count} for domain, count in segments],
        "trace": proof.head["trace"],
        "chain": proof.chain.hex(),
    }


def wanted_step(policy: Policy, tokens: NDArray[np.int32], position: int, forward: Forward) -> Step:
    """The one right step at the last of ``tokens``."""
    return _step(policy, tokens, position, [values[0] for values in forward(tokens, position)])


def _step(policy: Policy, tokens: NDArray[np.int32], position: int, computed: Any) -> Step:
    router, expert, logits = computed
    token = choose(logits, position, policy.sampling)
    hashes = hashed(router), hashed(logits)
    return Step(position, int(tokens[position]), int(expert), *hashes, token)


def operator_digests(
    seal: Seal, tokens: NDArray[np.int32], steps: Sequence[Step], first: int
) -> tuple[list[str], list[list[bytes]]]:
    """Names and digests of the operator outputs that decide each step, in order.

    Args:
        seal: the model.
        tokens: prompt and answer, up to the last id that went in.
        steps: the steps of interest, the last of them at the last token.
        first: position of the first of them.

    Returns:
        the names (an expert's as ``expert``), and for each step one digest per name.
    """
    experts = {step.expert for step in steps}
    seen: dict[int | None, list[tuple[str, list[bytes]]]] = {e: [] for e in (None, *experts)}
    watch = _digesting(seen, len(tokens) - first)
    reference = Reference(seal)
    with Session(reference) as session:
        gate = session.begin(Prompt(tuple(tokens.tolist())), Policy())
        reference.answer(gate, first, watch)
    names, digests = [], []
    for i, step in enumerate(steps):
        told = [*seen[None], *seen[step.expert]]
        names = [name for name, _ in told]
        digests.append([rows[i] for _, rows in told])
    return names, digests


def _digesting(seen: dict[int | None, list[Any]], count: int) -> Watch:
    """Collects the digests of the last ``count`` positions of every output, by component."""

    def watch(name: str, values: NDArray[np.int64]) -> None:
        component, _, rest = name.partition(".")
        expert = int(component[6:]) if component.startswith("expert") else None
        if expert in seen:
            rows = [hashed(row) for row in values[-count:]]
            seen[expert].append((name if expert is None else f"expert.{rest}", rows))

    return watch


def _check_head(proof: Proof, seal: Seal, prompt: Prompt, policy: Policy, room: int) -> None:
    try:
        canonical = policy.canonical(seal.manifest.dimensions.vocab, room)
    except UsageError as e:
        raise InputError(f"policy: {e}") from e
    head = begin(seal, prompt, canonical, proof.head["trace"]).head
    for key, value in head.items():
        if proof.head[key] != value:
            why = "differs from the canonical one" if key == "policy" else "is not this seal's"
            raise InputError(f"the proof is refused: its {key} {why}")


def _check_steps(
    proof: Proof, policy: Policy, tokens: NDArray[np.int32], first: int, forward: Forward
) -> None:
    computed = forward(tokens, first)
    for i, step in enumerate(proof.steps):
        wanted = _step(policy, tokens, first + i, [values[i] for values in computed])
        for name in ("position", "token_in", "expert", "router", "logits", "token_out"):
            found, right = getattr(step, name), getattr(wanted, name)
            if found != right:
                raise InputError(
                    f"step {i} (position {first + i}): {name} is {_show(found)} in the "
                    f"proof, {_show(right)} when computed again"
                )


def _check_end(proof: Proof, policy: Policy, room: int, seal: Seal) -> None:
    """The end follows from the steps, and the answer's bytes are those of its ids."""
    words, text, output = seal.vocabulary, bytearray(), []
    silent = {*policy.stop, *words.specials.values()}
    ended = None
    for i, token in enumerate(proof.output):
        if ended:
            raise InputError(f"step {i}: the answer had ended ({ended}) before it")
        output.append(token)
        new = b"" if token in silent else words.tokens[token]
        text += new
        ended = policies.ending(policy, room, output, text, len(new))
    if ended != (proof.end if proof.end in NATURAL else None):
        raise InputError(f"end: is {proof.end!r} in the proof; the steps end it by {ended!r}")
    if proof.answer != policies.cut(policy, text):
        raise InputError("answer: its bytes are not those of the ids that came out")


def _check_trace(proof: Proof, seal: Seal, tokens: NDArray[np.int32], first: int) -> None:
    names, wanted = operator_digests(seal, tokens, proof.steps, first)
    for i, (digests, right) in enumerate(zip(proof.operators, wanted, strict=True)):
        if list(digests) != right or proof.steps[i].trace != trace_root(right):
            at = next(
                (
                    j
                    for j, pair in enumerate(zip(digests, right, strict=False))
                    if pair[0] != pair[1]
                ),
                0,
            )
            raise InputError(f"step {i}: the output of {names[at]} is another when computed again")


def traced(proof: Proof, seal: Seal) -> Proof:
    """The same answer with the digests of its operator outputs, so that others can dispute it."""
    tokenizer = Tokenizer.from_vocabulary(seal.vocabulary.file_tree())
    prompt = proof.prompt(tokenizer)
    growing = begin(seal, prompt, proof.policy, trace=True)
    digests: list[list[bytes]] = []
    if proof.steps:
        tokens = np.array([*prompt.ids, *proof.output[:-1]], np.int32)
        _, digests = operator_digests(seal, tokens, proof.steps, len(prompt.ids) - 1)
    for step, own in zip(proof.steps, digests, strict=True):
        growing.extend(dataclasses.replace(step, trace=trace_root(own)))
    return growing.close(proof.answer, proof.end, digests)


def _affordable(seal: Seal, length: int) -> None:
    """Refuse what would take hours, with the figure, before it is begun."""
    d = seal.manifest.dimensions
    weights = sum(t.spec.size for t in seal.tensors.values() if t.spec.dtype == "int8")
    attention = length * sum(s.layers * s.hidden for s in d.segments.values())
    operations = 2 * length * (weights + 2 * attention)
    if operations > MOST_OPERATIONS:
        raise InputError(
            f"{length:,} tokens take {operations:.1e} operations in NumPy, more than "
            f"{MOST_OPERATIONS:.0e}: compute them on devices (--mesh)"
        )


def _show(value: Any) -> str:
    return value.hex()[:16] + "…" if isinstance(value, bytes) else str(value)
