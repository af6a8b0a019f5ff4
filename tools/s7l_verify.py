"""Verify a sealed model `.s7l`: one file to copy anywhere, Python ≥ 3.10 and msgpack alone.

Prints the root and exits with 0 if every byte is as sealed; else names the place and exits
with 1 (2 for a wrong command). Tensors are streamed; signatures and bundles are not read.

Examples:
  python tools/s7l_verify.py model.s7l [--root 9da075e3…]
"""

import hashlib
import math
import os
import re
import struct
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from typing import Any, BinaryIO

import msgpack

OURS = r"'(?:[sdmt]|ll|ve|re)|\p{N}{1,2}| ?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
PATTERN = "|".join(re.escape(way + r"|\s+(?!\S)|\s+") for way in (OURS, GPT2))  # to split text
CHUNK, PAGE, PREFIX = 1 << 20, 4096, b"S7LM\x00\x03\x02\x05"
LANES = ("DICT", "FIELD", "LANE", "EDGE", "BATCH")
TAGS = (b"S7L3DICT", b"", b"S7L3STRM", b"S7L3EDGE", b"S7L3BTCH")
CAPS = (16 << 20, 1 << 63, 4 << 20, 4 << 20, 1 << 20)
BATCH = "71bcef5991e1bb37de9ea1b3b82f00429d0f0b34216aecb6961047a6f954c13f"
FIXED = "426c3c7c7c364872aa630c8aeb375fddb236fc4ce2613284000cfb56d2339ad5"  # folds, lanes, phases
# Forms: {key: form}, [form, least, most], (least, most) integer, range of byte lengths, regex
DIGEST, KINDS = range(32, 33), (dict, list, type(None), bool, int, float, str, bytes)
BYTES, WIDTH = [[b] for b in range(256)], {"int8": 1, "int32": 4}
STACK = {"layers": (1, 64), "hidden": (1, 65_536), "heads": (1, 4_096), "ffn": (1, 1 << 20)}
MODEL: Any = {"vocab": (32, 1 << 20), "context": (2, 1 << 16), "routing_window": (1, 1 << 16)}
MODEL.update({"trunk": STACK, "expert": STACK, "domains": ["[a-z0-9_]{1,64}", 1, 16]})
EDGE: Any = {"format": "s7-manifest", "version": (1, 1), "method": "per_row_int8", "model": MODEL}
EDGE.update(dict.fromkeys("components routing lanes folds phases hashes provenance parent".split()))
EDGE.update({"tensors": [None, 1, CHUNK]})
TOKENS, MERGES = [range(1, (1 << 16) + 1), 256, 1 << 20], [[(0, 1 << 20), 2, 2], 0, 1 << 20]


class Refused(Exception):
    """The file is no valid seal; the message says where and why."""


def need(holds: Any, place: str, problem: str) -> None:
    """Refuse unless it holds."""
    if not holds:
        raise Refused(f"{place}: {problem}")


def leaf(tag: bytes, data: bytes) -> bytes:
    """Hash of a leaf."""
    return hashlib.sha256(b"\0" + tag + data).digest()


def tree(leaves: list[bytes]) -> bytes:
    """Root over leaf hashes."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + tree(leaves[:split]) + tree(leaves[split:])).digest()


def ordered(value: Any, place: str, kinds: Any = KINDS, depth: int = 0) -> Any:
    """The tree itself, its map keys put in order; refuses what cannot be sealed."""
    need(depth < 12 or type(value) not in (dict, list), place, "nested deeper than 12")
    if type(value) is dict:
        need(set(map(type, value)) <= {str}, place, "a map key is not a string")
        for key in sorted(value):
            value[key] = ordered(value.pop(key), place, kinds, depth + 1)
    for item in value if type(value) is list else ():
        ordered(item, place, kinds, depth + 1)
    fits = type(value) in kinds and (type(value) is not float or math.isfinite(value))
    need(fits, place, f"a {type(value).__name__} that has no place here")
    return value


def encode(value: Any, place: str = "") -> bytes:
    """Canonical msgpack."""
    return bytes(msgpack.packb(ordered(value, place)))


def decode(data: bytes, place: str) -> Any:
    """The tree in canonical msgpack; nothing is built before all claimed lengths are there."""
    budget, unpacker = iter(range(1 << 20)), msgpack.Unpacker(max_buffer_size=len(data))

    def hook(container: Any) -> Any:
        need(next(budget, None) is not None, place, "too many lists and maps")
        return container

    try:
        unpacker.feed(data)
        unpacker.skip()
        found = msgpack.unpackb(data, object_hook=hook, list_hook=hook)
    except (ValueError, msgpack.UnpackException) as e:
        raise Refused(f"{place}: no msgpack: {e!r}") from e
    need(encode(found, place) == data, place, "not the canonical encoding")
    return found


def check(value: Any, form: Any, place: str) -> None:
    """Require a form."""
    if isinstance(form, dict):
        fits = type(value) is dict and sorted(value) == sorted(form)
    elif isinstance(form, list):
        fits = type(value) is list and form[1] <= len(value) <= form[2]
    elif isinstance(form, tuple):
        fits = type(value) is int and form[0] <= value <= form[1]
    elif isinstance(form, range):
        fits = type(value) is bytes and len(value) in form
    else:
        fits = form is None or (type(value) is str and bool(re.fullmatch(form, value, re.DOTALL)))
    need(fits, place, f"expected {form!s:.200}")
    for key in form if isinstance(form, dict) else ():
        check(value[key], form[key], f"{place}.{key}")
    for i, item in enumerate(value if isinstance(form, list) else ()):
        check(item, form[0], f"{place}[{i}]")


def table(model: Any) -> list[dict[str, Any]]:
    """The tensors a model must have: name, shape, dtype, and axis and scale of a matrix."""
    made: list[Any] = []

    def add(name: str, *shape: int, axis: int = 1) -> None:
        if len(shape) == 2:
            entry = {"name": f"{name}.weight", "shape": list(shape), "dtype": "int8"}
            made.append({**entry, "axis": axis, "scale": f"{name}.scale"})
            name, shape = f"{name}.scale", (shape[axis],)
        made.append({"name": name, "shape": list(shape), "dtype": "int32"})

    experts = [f"expert{e}" for e in range(len(model["domains"]))]
    hidden, width = model["trunk"]["hidden"], model["expert"]["hidden"]
    add("embedding", model["vocab"], hidden, axis=0)
    add("router", hidden, len(experts))
    add("router.bias", len(experts))
    add("trunk.final_norm.gain", hidden)
    for name in experts:
        add(f"{name}.in_norm.gain", hidden)
        add(f"{name}.in_proj", hidden, width)
        add(f"{name}.out_norm.gain", width)
        add(f"{name}.out_proj", width, hidden)
    for name in ("trunk", *experts):
        stack = model["trunk" if name == "trunk" else "expert"]
        size, ffn = stack["hidden"], stack["ffn"]
        add(f"{name}.residual", 1)
        for layer in (f"{name}.layer{i}" for i in range(stack["layers"])):
            for part in "qkvo":
                add(f"{layer}.attn.{part}_proj", size, size)
            for part in "attn_norm attn.q attn.k attn.o_proj ffn_norm".split():
                add(f"{layer}.{part}.gain", size)
            for part, *shape in (("fc1", size, ffn), ("fc2", ffn, size), ("fc2.gain", ffn)):
                add(f"{layer}.ffn.{part}", *shape)
    return sorted(made, key=lambda entry: entry["name"])


def check_words(found: Any, stream: Any, model: Any) -> None:
    """Lanes 1 and 3."""
    place, vocab, context = "lane 1 (DICT) ", model["vocab"], model["context"]
    words = {"tokens": TOKENS, "merges": MERGES, "specials": None, "pattern": PATTERN}
    check(found, {"format": "s7-dict", "version": (1, 1), "fold": "⟁DATA_FOLD⟁", **words}, place)
    tokens, specials, merges = found["tokens"], found["specials"], found["merges"]
    fits = len(tokens) == vocab and type(specials) is dict and all(max(m) < vocab for m in merges)
    need(fits, f"{place}.tokens, .specials, .merges", f"expected {vocab} tokens, a map, their ids")
    for name, i in specials.items():
        check(i, (0, vocab - 1), f"{place}.specials.{name[:64]!a}")
        fits = 1 <= len(name) <= 256 and tokens[i] == name.encode()
        need(fits, f"{place}.specials.{name[:64]!a}", "not spelt like its token")
    odd = set(specials.values())
    spelt = {token for i, token in enumerate(tokens) if i not in odd}
    fits = len(spelt) + len(odd) == vocab and spelt.issuperset(map(bytes, BYTES))
    need(fits, f"{place}.tokens", "two are the same bytes, or a single byte is none")
    pairs = {(a, b) for a, b in merges if tokens[a] + tokens[b] in spelt and not {a, b} & odd}
    need(len(pairs) == len(merges), f"{place}.merges", "an impossible pair, or one twice")
    place, one_id = "lane 3 (LANE) ", (0, vocab - 1)
    defaults: Any = {"max_new_tokens": (1, context - 1), "temperature_q16": (0, 1 << 24)}
    defaults.update({"seed": (0, (1 << 32) - 1), "stop": [one_id, 0, 16]})
    answer: Any = {"prompt": [one_id, 1, 256], "output": [one_id, 1, 64]}
    answer.update({"domain": "|".join(model["domains"]), "logits": [DIGEST, 1, 64]})
    form: Any = {"format": "s7-stream", "version": (1, 1), "fold": "⟁EVENTS_FOLD⟁"}
    check(stream, {**form, "defaults": defaults, "answers": [answer, 0, 64]}, place)
    stop = stream["defaults"]["stop"]
    need(stop == sorted(set(stop)), f"{place}.defaults.stop", "ids repeat or are out of order")
    for one in stream["answers"]:
        fits = len(one["prompt"] + one["output"]) <= context
        fits &= len(one["logits"]) == len(one["output"])
        need(fits, f"{place}.answers", "one is too long, or has not a digest for each id")


def check_manifest(found: Any, stream: Any, lanes: Any) -> list[dict[str, Any]]:
    """Lane 4: everything in it but a few free values is rebuilt and compared."""
    place, model, hashes = "lane 4 (EDGE) ", found["model"], [lane[2] for lane in lanes]
    names, stacks = model["domains"], (model["trunk"], model["expert"])
    odd = any(stack["hidden"] % (2 * stack["heads"]) for stack in stacks) or model["vocab"] % 32
    need(not odd and len(set(names)) == len(names), f"{place}.model", "impossible dimensions")
    check(found["parent"], None if found["parent"] is None else DIGEST, f"{place}.parent")
    need(type(found["provenance"]) is dict, f"{place}.provenance", "expected a map")
    ordered(found["provenance"], f"{place}.provenance", KINDS[:-1])
    count = 7 + 7 * len(names) + 18 * (stacks[0]["layers"] + len(names) * stacks[1]["layers"])
    need(len(found["tensors"]) == count, f"{place}.tensors", f"expected {count}")
    wanted, end = table(model), 0
    parts: dict[str, dict[str, bytes]] = {}
    for i, (entry, t) in enumerate(zip(found["tensors"], wanted, strict=True)):
        where, part = f"{place}.tensors[{i}]", t["name"].partition(".")[0]
        stored = -(-math.prod(t["shape"]) * WIDTH[t["dtype"]] // 32) * 32
        fixed = {} if "axis" in t else {"exponent": (-127, 127)}
        fixed = {"exponent": (31, 31)} if t["name"].endswith(".residual") else fixed
        free = {"chunks": [DIGEST, (n := -(-stored // CHUNK)), n], **fixed}
        check(entry, {**dict.fromkeys((*t, "stored", "offset")), **free}, where)
        t.update({**{key: entry[key] for key in fixed}, "stored": stored})
        described = leaf(b"S7L3TENS", encode({**t, "root": tree(entry["chunks"])}))
        step = 64 if part in parts else PAGE
        t.update({"chunks": entry["chunks"], "offset": -(-end // step) * step})
        need(encode(entry) == encode(t), where, "not what the dimensions demand")
        parts.setdefault(part, {})[t["name"]] = described
        end = t["offset"] + stored
    routing = [{"expert": e, "component": f"expert{e}", "domain": d} for e, d in enumerate(names)]
    meta = {"dictionary": hashes[0], "model": model, "routing": routing}
    meta.update({key: found[key] for key in ("provenance", "parent")})
    policy = {"folds": found["folds"], "phases": found["phases"], "defaults": stream["defaults"]}
    same: dict[str, Any] = {"routing": routing}
    same["components"] = [{"name": part, "tensors": list(parts[part])} for part in parts]
    bound = {"abi": hashes[4], "policy": leaf(b"S7L3PLCY", encode(policy))}
    same["hashes"] = {**bound, "meta": leaf(b"S7L3META", encode(meta))}
    constants = encode({key: found[key] for key in ("folds", "lanes", "phases")}, place)
    need(hashlib.sha256(constants).hexdigest() == FIXED, f"{place}.folds", "or .lanes or .phases")
    for key, value in same.items():
        where = f"{place}.{key}"
        need(encode(found[key], where) == encode(value), where, "not what the rest demands")
    named = [encode({"name": p, "root": tree([*parts[p].values()])}) for p in parts]
    fits = lanes[1][1] == end and hashes[1] == tree([leaf(b"S7L3COMP", n) for n in named])
    need(fits, "lane 2 (FIELD) length, hash", "not what the manifest's tensors demand")
    return wanted


def check_field(file: BinaryIO, start: int, end: int, tensors: list[dict[str, Any]]) -> None:
    """Lane 2: hashes, padding, gaps and values, a chunk at a time."""
    starts = [start + t["offset"] for t in tensors]
    for t, at, after in zip(tensors, starts, [*starts[1:], end], strict=True):
        place, left = f"FIELD tensor {t['name']}", math.prod(t["shape"]) * WIDTH[t["dtype"]]
        file.seek(at)
        for i, wanted in enumerate(t["chunks"]):
            data = file.read(min(CHUNK, t["stored"] - i * CHUNK))
            need(leaf(b"S7L3CHNK", data) == wanted, f"{place} chunk {i}", "not the sealed bytes")
            values, left = data[:left], left - len(data)
            bad = any(data[len(values) :]) or (t["dtype"] == "int8" and b"\x80" in values)
            bad |= t["name"].endswith(".scale") and max(values[3::4]) > 127
            bad |= place.endswith(".residual") and not -16 <= struct.unpack("<i", values)[0] <= 29
            need(not bad, f"{place} chunk {i}", "a value out of range, or padding not zero")
        need(not any(file.read(after - at - t["stored"])), f"FIELD gap after {place}", "not zero")


def verify(path: str) -> bytes:
    """The root of a sealed file; raises Refused or OSError. What is no file has no length."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        head, size = file.read(PAGE) or b"", os.fstat(file.fileno()).st_size
        need(len(head) == PAGE, f"head[{len(head)}:4096]", "cut short")
        exact, lanes, trees, end = b"", [], {}, PAGE
        for i in range(5):
            length, digest = struct.unpack_from(">Q32s", head, 64 * i + 80)
            need(1 <= length <= CAPS[i], f"lane {i + 1} ({LANES[i]}) length", "impossible")
            lanes.append((-(-end // PAGE) * PAGE, length, digest))
            exact += struct.pack(">B7xQQ32s8x", i + 1, *lanes[i])
            end = lanes[i][0] + length
        need(end == size, f"file[{end}:]", f"the lanes end there, the file at {size}")
        directory = tree([leaf(b"S7L3LREC", exact[i : i + 64]) for i in range(0, 320, 64)])
        root = hashlib.sha256(b"S7L3SEAL" + PREFIX + size.to_bytes(8, "big") + directory).digest()
        exact = (struct.pack(">8s32sQ16x", PREFIX, root, size) + exact).ljust(PAGE, b"\0")
        for at in range(PAGE):
            need(head[at] == exact[at], f"head[{at}]", "not what the lanes demand")
        for i in (0, 2, 3, 4):
            place, (offset, length, digest) = f"lane {i + 1} ({LANES[i]})", lanes[i]
            file.seek(offset)
            payload = file.read(length)
            need(leaf(TAGS[i], payload) == digest, place, "not the payload of its hash")
            need(not any(file.read(-length % PAGE)), f"gap after {place}", "not zero")
            trees[i] = decode(payload, place)
        need(lanes[4][2].hex() == BATCH, "lane 5 (BATCH)", "another compute contract")
        check(trees[3], EDGE, "lane 4 (EDGE) ")
        check_words(trees.pop(0), trees[2], trees[3]["model"])
        check_field(file, lanes[1][0], lanes[2][0], check_manifest(trees[3], trees[2], lanes))
        return root


def main() -> None:
    """Parse, verify, print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--root", type=bytes.fromhex, metavar="HEX", help="the root it must have")
    args = parser.parse_args()
    try:
        root = verify(args.file)
        need(args.root in (None, root), "root", f"{root.hex()}, not the expected one")
    except (Refused, OSError, ValueError) as e:
        sys.exit(f"error: {args.file}: {e}")
    print(f"{args.file}: every byte as sealed, root {root.hex()}")


if __name__ == "__main__":
    main()
