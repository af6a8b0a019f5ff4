"""A transcript's reader by docs/transcript.md alone: the standard library and msgpack."""

import hashlib
import struct
from typing import Any

import msgpack


def read(data: bytes) -> dict[str, Any]:
    """Head, losses, states, end and root; ValueError for what is no transcript."""
    entries, root = chained(data)
    require(entries[0][:2] == ["s7-transcript", 1], "not a transcript")
    require(entries[1][:2] == ["environment", 0], "no environment")
    head, losses, states = entries[0][2], [], {}
    for kind, number, *rest in entries[1:-1]:
        require(number == len(losses), "out of order")
        done = len(losses)
        due = done > 0 and (done % head["states_every"] == 0 or done == head["steps"])
        if kind == "step":
            require(not due or done in states, "a state is missing")
            losses += struct.unpack("<f", rest[1])
        elif kind == "state":
            require(due and done not in states, "a state that is not due")
            gradient, state = rest
            states[done] = gradient.hex(), state.hex()
        else:
            require(kind == "environment", "an entry of another kind")
    require(entries[-1][:2] == ["end", head["steps"]] and head["steps"] in states, "no end")
    return {"head": head, "losses": losses, "states": states, "end": entries[-1][2], "root": root}


def chained(data: bytes) -> tuple[list[Any], bytes]:
    """All entries, and the last hash of their chain."""
    unpacker = msgpack.Unpacker(raw=False)
    unpacker.feed(data)
    root, at, entries = hashlib.sha256(b"s7-transcript").digest(), 0, []
    while at < len(data):
        entries.append(unpacker.unpack())
        raw, at = data[at : unpacker.tell()], unpacker.tell()
        require(msgpack.packb(entries[-1]) == raw, "not the shortest encoding")
        root = hashlib.sha256(root + raw).digest()
    return entries, root


def require(right: bool, problem: str) -> None:
    if not right:
        raise ValueError(problem)
