"""Proofs that lie: each changed where it matters and its chain made right again.

A forger knows the format and the sealed file; what they cannot do is compute other logits. Built
with hashlib and msgpack alone, so that a mistake of ours cannot hide behind the same one here.
"""

import copy
import hashlib
import random

import msgpack
from attacker import ordered

PROMPT, ANSWER = "def f", 6


def leaf(tag: bytes, data: bytes) -> bytes:
    return hashlib.sha256(b"\0" + tag + data).digest()


def pack(tree) -> bytes:
    return msgpack.packb(ordered(tree))


def rechained(tree):
    """The same claims with the chain that they demand."""
    chain = leaf(b"S7L3PRFH", pack(tree["head"]))
    for step in tree["steps"] if isinstance(tree["steps"], list) else []:
        chain = leaf(b"S7L3PRFS", chain + pack(step))
    tail = {"answer": tree["answer"], "end": tree["end"]}
    return tree | {"chain": leaf(b"S7L3PRFT", chain + pack(tail))}


def forged(tree, change):
    """A copy, changed, its chain right."""
    made = copy.deepcopy(tree)
    change(made)
    return rechained(made)


def policy(**values):
    return lambda t: t["head"]["policy"].update(values)


def head(**values):
    return lambda t: t["head"].update(values)


def prompt(value):
    return lambda t: t["head"].update(prompt=value)


def field(**values):
    return lambda t: t.update(values)


def step(i, at, change):
    def apply(t):
        t["steps"][i][at] = change(t["steps"][i][at])

    return apply


def flip(value):
    return value[:-1] + bytes([value[-1] ^ 1])


def less(n):
    """The first n steps, and the answer as it was."""
    return lambda t: t.update(steps=t["steps"][:n])


def swap(t):
    t["steps"][1], t["steps"][2] = t["steps"][2], t["steps"][1]


# Forgeries of a greedy answer that ended by its length: name → (change, what the refusal names).
GREEDY = {
    "no steps, stopped": (field(steps=[], end="stop", answer=b""), "end"),
    "no steps, length": (field(steps=[], end="length", answer=b""), "end"),
    "no steps, context": (field(steps=[], end="context", answer=b""), "end"),
    "no steps, the old word": (field(steps=[], end="abandoned", answer=b""), "end"),
    "no end": (field(end=None), "end"),
    "length called stop": (field(end="stop"), "end"),
    "length called context": (field(end="context"), "end"),
    "length called client": (field(end="client"), "end"),
    "length called time": (field(end="time"), "end"),
    "an end and a line more": (field(end="length\n"), "end"),
    "an end of another case": (field(end="Length"), "end"),
    "cut short, still length": (less(3), "end"),
    "cut short, called stop": (lambda t: (less(3)(t), t.update(end="stop")), "end"),
    "cut short, answer whole": (lambda t: (less(3)(t), t.update(end="client")), "answer"),
    "one step more": (lambda t: t["steps"].append(t["steps"][-1]), "position"),
    "another seed": (policy(seed=7), "seed"),
    "another top_k": (policy(top_k=5), "top_k"),
    "another top_p": (policy(top_p_q16=5), "top_p_q16"),
    "the smallest temperature": (policy(temperature_q16=1), "temperature"),
    "just below the least temperature": (policy(temperature_q16=1023), "temperature"),
    "top_k 1 at a temperature": (policy(temperature_q16=65536, top_k=1), "temperature_q16"),
    "a temperature": (policy(temperature_q16=65536), "step"),
    "a temperature and a seed": (policy(temperature_q16=65536, seed=3), "step"),
    "negative temperature": (policy(temperature_q16=-1), "temperature"),
    "temperature a bool": (policy(temperature_q16=False), "temperature"),
    "no bias, written down": (policy(logit_bias=[]), "logit_bias"),
    "a bias of nothing": (policy(logit_bias=[[5, 0]]), "logit_bias"),
    "a bias twice": (policy(logit_bias=[[5, 1], [5, 2]]), "logit_bias"),
    "biases out of order": (policy(logit_bias=[[6, 1], [5, 1]]), "logit_bias"),
    "a bias beyond 100": (policy(logit_bias=[[5, 6_553_601]]), "logit_bias"),
    "a bias beyond the vocabulary": (policy(logit_bias=[[100_000, 1]]), "logit_bias"),
    "a bias of a bool": (policy(logit_bias=[[True, 1]]), "logit_bias"),
    "a float bias": (policy(logit_bias=[[5, 1.0]]), "logit_bias"),
    "257 biases": (policy(logit_bias=[[i, 1] for i in range(257)]), "logit_bias"),
    "a bias that decides": (policy(logit_bias=[[5, 6_553_600]]), "step"),
    "more tokens asked": (policy(max_new_tokens=ANSWER + 1), "end"),
    "fewer tokens asked": (policy(max_new_tokens=ANSWER - 1), "ended"),
    "as many as there is room, by number": (policy(max_new_tokens=50_000), "policy"),
    "no limit": (policy(max_new_tokens=None), "end"),
    "2^24 tokens": (policy(max_new_tokens=1 << 24), "max_new_tokens"),
    "no tokens": (policy(max_new_tokens=0), "max_new_tokens"),
    "tokens a bool": (policy(max_new_tokens=True), "max_new_tokens"),
    "a seed of 64 bits": (policy(temperature_q16=65536, seed=(1 << 64) - 1), "seed"),
    "minus zero": (policy(temperature_q16=-0.0), "temperature"),
    "a stop id a bool": (policy(stop=[False]), "stop"),
    "stops a map": (policy(stop={}), "stop"),
    "tokens a float": (policy(max_new_tokens=6.0), "max_new_tokens"),
    "a stop id nobody meets, twice": (policy(stop=[5, 5]), "stop"),
    "stops out of order": (policy(stop=[6, 5]), "stop"),
    "a stop id beyond the vocabulary": (policy(stop=[100_000]), "stop"),
    "a stop id beyond all": (policy(stop=[1 << 20]), "stop"),
    "65 stop ids": (policy(stop=list(range(1, 66))), "stop"),
    "a stop text within another": (policy(stop_texts=[b"zz", b"zzz"]), "stop_texts"),
    "an empty stop text": (policy(stop_texts=[b""]), "stop"),
    "a stop text twice": (policy(stop_texts=[b"qq", b"qq"]), "stop_texts"),
    "a stop text of 257 bytes": (policy(stop_texts=[b"q" * 257]), "stop"),
    "a stop text a string": (policy(stop_texts=["q"]), "stop_texts"),
    "an unknown setting": (policy(min_p=1), "policy"),
    "a setting missing": (lambda t: t["head"]["policy"].pop("seed"), "policy"),
    "another text": (prompt({"text": b"def g", "start": True}), "step 0"),
    "a longer text": (prompt({"text": b"def f(", "start": True}), "position"),
    "no text": (prompt({"text": b"", "start": True}), "position"),
    "no text, no start": (prompt({"text": b"", "start": False}), "prompt"),
    "without the start of a document": (prompt({"text": b"def f", "start": False}), "position"),
    "start a number": (prompt({"text": b"def f", "start": 1}), "start"),
    "text a string": (prompt({"text": "def f", "start": True}), "text"),
    "the same text as bytes' own ids": (
        prompt({"ids": [0, *[b + 1 for b in b"def f"]]}),
        "",
    ),
    "no ids": (prompt({"ids": []}), "prompt"),
    "more text than the splitter can bear": (
        prompt({"text": b" " * (1 << 24), "start": True}),
        "prompt",
    ),
    "<|eod|> as text": (prompt({"text": b"<|eod|>def f", "start": False}), "position"),
    "ids beyond the vocabulary": (prompt({"ids": [0, 70_000]}), "prompt"),
    "both forms": (prompt({"ids": [1], "text": b"", "start": True}), "prompt"),
    "another root": (head(root=bytes(32)), "root"),
    "a short root": (head(root=bytes(31)), "root"),
    "another abi": (lambda t: t["head"]["hashes"].update(abi=bytes(32)), "hashes"),
    "no experts": (head(experts={}), "experts"),
    "two experts' roots exchanged": (
        lambda t: t["head"]["experts"].update(
            expert0=t["head"]["experts"]["expert1"], expert1=t["head"]["experts"]["expert0"]
        ),
        "experts",
    ),
    "an expert's root": (lambda t: t["head"]["experts"].update(expert1=bytes(32)), "experts"),
    "one expert more": (lambda t: t["head"]["experts"].update(expert9=bytes(32)), "experts"),
    "a trace that is not there": (head(trace=True), "trace"),
    "a word more in the head": (head(note="x"), "head"),
    "a word more outside": (field(note="x"), "proof"),
    "version 1": (field(version=1), "version"),
    "version 3": (field(version=3), "version"),
    "another answer": (field(answer=b"something else"), "answer"),
    "no answer": (field(answer=b""), "answer"),
    "the answer and a byte": (lambda t: t.update(answer=t["answer"] + b"."), "answer"),
    "the answer a string": (field(answer="x"), "answer"),
    "another position": (step(0, 0, lambda v: v + 1), "position"),
    "another token in": (step(2, 1, lambda v: v ^ 1), "token_in"),
    "another first token in": (step(0, 1, lambda v: v ^ 1), "token_in"),
    "another expert": (step(3, 2, lambda v: (v + 1) % 4), "expert"),
    "an expert that is not there": (step(3, 2, lambda _: 15), "expert"),
    "every position further on": (
        lambda t: [s.__setitem__(0, s[0] + 9) for s in t["steps"]],
        "position",
    ),
    "other router logits": (step(4, 3, flip), "router"),
    "other logits": (step(5, 4, flip), "logits"),
    "another last token": (step(5, 5, lambda v: v ^ 1), "token_out"),
    "a token out that is no integer": (step(5, 5, lambda _: True), "token_out"),
    "a negative token": (step(5, 5, lambda _: -1), "token_out"),
    "two steps exchanged": (swap, "position"),
    "a step of seven": (lambda t: t["steps"][0].append(bytes(32)), "steps"),
    "a step of five": (lambda t: t["steps"][0].pop(), "steps"),
}


def mutant(tree, rng: random.Random):
    """A random small lie, its chain made right."""

    def places(value, path=()):
        if isinstance(value, dict):
            for key in value:
                yield from places(value[key], (*path, key))
        elif isinstance(value, list):
            yield path
            for i in range(len(value)):
                yield from places(value[i], (*path, i))
        else:
            yield path

    made = copy.deepcopy(tree)
    where = rng.choice([p for p in places(made) if p and p[0] not in ("chain", "format")])
    node = made
    for key in where[:-1]:
        node = node[key]
    node[where[-1]] = _other(node[where[-1]], rng)
    return rechained(made)


def _other(value, rng):
    odd = [None, True, False, 0, 1, -1, 1 << 31, 1 << 63, "", "x", b"", b"\0" * 32, [], {}]
    near = {
        int: lambda: [value + 1, value - 1, value ^ (1 << rng.randrange(24)), -value],
        str: lambda: ["stop", "length", "context", "client", "time", value + "x"],
        bytes: lambda: [_flipped(value, rng), value[:-1], value + b"."],
        list: lambda: [value[:-1], [*value, *value[-1:]], value[::-1]],
    }
    return rng.choice(odd if type(value) not in near or rng.random() < 0.3 else near[type(value)]())


def _flipped(value, rng):
    at = rng.randrange(max(1, len(value)))
    return (
        value[:at]
        + bytes([(value[at : at + 1] or b"\0")[0] ^ 1 << rng.randrange(8)])
        + value[at + 1 :]
    )
