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
from s7jax.integer.specification import BLOCK, Watch
from s7jax.runtime import policy as policies
from s7jax.runtime.compute import Forward, Reference
from s7jax.runtime.policy import NATURAL, Policy
from s7jax.runtime.prompt import Prompt
from s7jax.runtime.proof import Proof, Step, begin, hashed, trace_root
from s7jax.runtime.session import Session
from s7jax.s7l import Seal

MOST_LOGITS = 1 << 30  # bytes of logits held at once
MOST_VALUES = 1 << 27  # of one operator in NumPy, 8 bytes each
MOST_OPERATIONS = 10**14  # of a replay in NumPy: about three hours of one core


def by_specification(seal: Seal) -> Forward:
    """The NumPy specification as an implementation to replay with."""
    reference = Reference(seal)

    def forward(
        tokens_T: NDArray[np.int32], first: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        _affordable(seal, len(tokens_T), len(tokens_T) - first)
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
    prompt, room = asked(proof, seal)
    first = len(prompt.ids) - 1
    tokens = np.array([*prompt.ids, *proof.output[:-1]], np.int32)
    if 4 * len(proof.steps) * seal.manifest.dimensions.vocab > MOST_LOGITS:
        raise InputError(f"steps: the logits of {len(proof.steps):,} take more than 1 GiB")
    if proof.steps:
        _check_steps(proof, proof.policy, tokens, first, forward)
    check_end(proof, room, seal)
    if proof.head["trace"]:
        _check_trace(proof, seal, tokens, first)
    return shown(proof, seal, prompt)


def asked(proof: Proof, seal: Seal) -> tuple[Prompt, int]:
    """The prompt of a proof and the room it leaves, if a sealed file can have been asked that.

    Raises:
        InputError: prompt, head or ids are not of this file; nothing has been computed.
    """
    prompt = proof.prompt(Tokenizer.from_vocabulary(seal.vocabulary.file_tree()))
    dimensions = seal.manifest.dimensions
    count, vocab, context = len(prompt.ids), dimensions.vocab, dimensions.context
    if not 1 <= count < context or not all(0 <= i < vocab for i in prompt.ids):
        raise InputError(
            f"prompt: {count} ids; expected 1 to {context - 1}, each below {vocab}, as sealed"
        )
    room = context - count
    _check_head(proof, seal, prompt, proof.policy, room)
    if len(proof.steps) > room or (proof.steps and max(proof.output) >= vocab):
        raise InputError(f"steps: more than {room}, or an id that is not below {vocab}")
    return prompt, room


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
            "text": None if prompt.text is None else _text(prompt.text),
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
            "stop_texts": [_text(text) for text in proof.policy.stop_texts],
        },
        "answer": _text(proof.answer),
        "steps": len(proof.steps),
        "end": proof.end,
        "experts": [{"domain": domain, "tokens": count} for domain, count in segments],
        "trace": proof.head["trace"],
        "chain": proof.chain.hex(),
    }


def _text(data: bytes) -> str:
    """Bytes as text, no two alike: what is no UTF-8 becomes lone surrogates, as in a prompt."""
    return data.decode(errors="surrogateescape")


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
    _affordable(seal, len(tokens), len(tokens) - first)
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


def check_end(proof: Proof, room: int, seal: Seal) -> None:
    """The end follows from the steps, and the answer's bytes are those of its ids.

    Raises:
        InputError: naming which of them is not so.
    """
    ended, count, answer = ended_by_itself(proof, room, seal)
    if count < len(proof.steps):
        raise InputError(f"step {count}: the answer had ended ({ended}) before it")
    if ended != (proof.end if proof.end in NATURAL else None):
        raise InputError(f"end: is {proof.end!r} in the proof; the steps end it by {ended!r}")
    if proof.answer != answer:
        raise InputError("answer: its bytes are not those of the ids that came out")


def ended_by_itself(proof: Proof, room: int, seal: Seal) -> tuple[str | None, int, bytes]:
    """Why the ids that came out end the answer (None: they do not), after how many, its bytes."""
    words, policy, text = seal.vocabulary, proof.policy, bytearray()
    silent = {*policy.stop, *words.specials.values()}
    output: list[int] = []
    ended = None
    for token in proof.output:
        output.append(token)
        new = b"" if token in silent else words.tokens[token]
        text += new
        if ended := policies.ending(policy, room, output, text, len(new)):
            break
    return ended, len(output), policies.cut(policy, text)


def _check_trace(proof: Proof, seal: Seal, tokens: NDArray[np.int32], first: int) -> None:
    names, wanted = operator_digests(seal, tokens, proof.steps, first)
    for i, (digests, right) in enumerate(zip(proof.operators, wanted, strict=True)):
        if len(digests) != len(names):
            raise InputError(f"step {i}: {len(digests)} operators; expected {len(names)}")
        for name, *pair in zip(names, digests, right, strict=True):
            if pair[0] != pair[1]:
                raise InputError(f"step {i}: the output of {name} is another when computed again")


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


def _affordable(seal: Seal, length: int, count: int) -> None:
    """Refuse what would take hours or all memory, with the figure, before it is begun.

    ``count`` of the ``length`` positions have logits.
    """
    d = seal.manifest.dimensions
    weights = sum(t.spec.size for t in seal.tensors.values() if t.spec.dtype == "int8")
    attention = length * sum(s.layers * s.hidden for s in d.segments.values())
    operations = 2 * length * (weights + 2 * attention)
    if operations > MOST_OPERATIONS:
        raise InputError(
            f"{length:,} tokens take {operations:.1e} operations in NumPy, more than "
            f"{MOST_OPERATIONS:.0e}: compute them on devices (--mesh)"
        )
    widest = max(max(s.hidden, s.ffn, s.heads * BLOCK) for s in (d.trunk, d.expert))
    if (held := max(length * widest, count * d.vocab)) > MOST_VALUES:
        raise InputError(
            f"{length:,} tokens take {held / 2**27:.1f} GiB for an operator in NumPy, more than "
            f"{MOST_VALUES / 2**27:.0f}: compute them on devices (--mesh)"
        )


def _show(value: Any) -> str:
    return value.hex()[:16] + "…" if isinstance(value, bytes) else str(value)
