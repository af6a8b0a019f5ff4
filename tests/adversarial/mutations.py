"""Files that an attacker mutated, most with every hash recomputed: each must be refused.

Each entry is (number and name, place that the message must name, mutation). Numbers below 135
are those of the project's list; 135 and above were found since. What is no change of one
file's bytes (bundles, signatures, file systems) has its own tests.
"""

import struct

from attacker import forge, pack, patch, record_of, reroot

Q = "expert0.layer0.attn.q_proj.weight"


def u16(n):
    return struct.pack(">H", n)


def u64(n):
    return struct.pack(">Q", n % (1 << 64))


def edge(*path, to):
    """Set one value of the manifest."""

    def change(forgery):
        *parents, last = path
        node = forgery.edge
        for key in parents:
            node = node[key]
        node[last] = to

    return forge(change)


def entry(name, key, to):
    """Set one value of a tensor's entry."""
    return forge(lambda f: f.entry(name).update({key: to}))


def manifest_bytes(make):
    """Replace the manifest's encoding by ``make(encoding)``."""
    return forge(lambda f: f.raw.update({4: make(pack(f.edge))}))


def deep(levels):
    return b"\x91" * levels + b"\xc0"


def span(data, number):
    at, size = struct.unpack(">QQ", data[64 * number + 8 : 64 * number + 24])
    return at, size


def swap_records(data):
    return reroot(data[:64] + data[128:192] + data[64:128] + data[192:])


def lengthen(data):
    return reroot(patch(data, 40, u64(len(data) + 1)))


def nonzero_gap(data):
    at, size = span(data, 1)
    return patch(data, at + size, b"\1", hashed=False)


def drop(prefix):
    """Drop tensors whose name starts with ``prefix``, and their place in the components."""

    def change(f):
        f.edge["tensors"] = [t for t in f.edge["tensors"] if not t["name"].startswith(prefix)]
        for c in f.edge["components"]:
            c["tensors"] = [name for name in c["tensors"] if not name.startswith(prefix)]
        f.edge["components"] = [c for c in f.edge["components"] if c["tensors"]]

    return change


HEAD = [
    ("1 empty", "head[0:4096]", lambda d: b""),
    ("2 39 bytes", "head[39:4096]", lambda d: d[:39]),
    ("3 head only", "head[40:48]", lambda d: d[:4096]),
    ("4 magic", "head[0:4]", lambda d: patch(d, 0, b"S7LN")),
    ("5 version 2", "head[4:6]", lambda d: patch(d, 4, u16(2))),
    ("6 version 65535", "head[4:6]", lambda d: patch(d, 4, u16(0xFFFF))),
    ("7 class", "head[6:7]", lambda d: patch(d, 6, b"\1")),
    ("8 no flags", "head[7:8]", lambda d: patch(d, 7, b"\0")),
    ("9 unknown flag", "head[7:8]", lambda d: patch(d, 7, b"\x0d")),
    ("10 zero root", "head[8:40]", lambda d: patch(d, 8, bytes(32), hashed=False)),
    ("11 root bit", "head[8:40]", lambda d: patch(d, 39, bytes([d[39] ^ 1]), hashed=False)),
    ("12 length + 1", "head[40:48]", lengthen),
    ("13 length max", "head[40:48]", lambda d: patch(d, 40, u64(-1))),
    ("14 reserved", "head[48:64]", lambda d: patch(d, 50, b"\1")),
    ("15 slack", "head[384:4096]", lambda d: patch(d, 4000, b"\1")),
    ("16 no lanes", "head[40:4096]", lambda d: d[:40]),
    ("17 zero directory", "head[64:65]", lambda d: patch(d, 64, bytes(320))),
]
LANES = [
    ("18 duplicate id", "head[128:129]", lambda d: patch(d, 128, b"\1")),
    ("19 swapped", "head[64:65]", swap_records),
    ("20 unknown id", "head[320:321]", lambda d: patch(d, 320, b"\x09")),
    ("21 id 0", "head[64:65]", lambda d: patch(d, 64, b"\0")),
    (
        "22 one offset",
        "lane 3 (LANE) offset",
        lambda d: patch(d, record_of(3, "offset"), u64(span(d, 2)[0])),
    ),
    (
        "23 offset + 1",
        "lane 2 (FIELD) offset",
        lambda d: patch(d, record_of(2, "offset"), u64(span(d, 2)[0] + 1)),
    ),
    (
        "24 length max",
        "lane 2 (FIELD) length",
        lambda d: patch(d, record_of(2, "length"), u64(-1)),
    ),
    ("25 length 0", "lane 3 (LANE) length", lambda d: patch(d, record_of(3, "length"), u64(0))),
    ("26 wrap", "lane 4 (EDGE) offset", lambda d: patch(d, record_of(4, "offset"), u64(-4096))),
    ("27 trailing byte", "head[40:48]", lambda d: d + b"\0"),
    ("27 trailing, claimed", "file[", lambda d: patch(d + b"\0", 40, u64(len(d) + 1))),
    ("28 sixth lane", "head[384:4096]", lambda d: patch(d, 384, b"\6")),
    ("29 cut last", "head[40:48]", lambda d: d[:-1]),
    ("29 cut, claimed", "lane 5 (BATCH) length", lambda d: patch(d[:-1], 40, u64(len(d) - 1))),
    ("30 cut in FIELD", "head[40:48]", lambda d: d[: span(d, 2)[0] + 100]),
    ("31 gap", "gap after lane 1 (DICT)", nonzero_gap),
    ("32 reserved in record", "head[65:72]", lambda d: patch(d, 66, b"\1")),
    ("32 reserved at its end", "head[120:128]", lambda d: patch(d, 127, b"\1")),
    ("33 lane hash", "lane 1 (DICT)", lambda d: patch(d, record_of(1, "hash"), bytes(32))),
    ("33 FIELD hash", "lane 2 (FIELD) hash", lambda d: patch(d, record_of(2, "hash"), bytes(32))),
    ("34 DICT byte", "lane 1 (DICT)", lambda d: patch(d, 4200, b"\xff", hashed=False)),
    ("35 EDGE cap", "lane 4 (EDGE) length", manifest_bytes(lambda e: e + bytes(4 << 20))),
]
ENCODING = [
    ("36 trailing", "expected the end", manifest_bytes(lambda e: e + b"\xc0")),
    ("37 duplicate key", "repeats", manifest_bytes(lambda e: b"\x82\xa1a\x01\xa1a\x01")),
    ("38 long integer", "shortest", manifest_bytes(lambda e: b"\xcc\x05")),
    ("39 str8", "shortest", manifest_bytes(lambda e: b"\xd9\x01a")),
    ("40 map16", "shortest", manifest_bytes(lambda e: b"\xde\x00" + bytes([e[0] & 15]) + e[1:])),
    ("41 unsorted", "out of order", manifest_bytes(lambda e: b"\x82\xa1b\x01\xa1a\x01")),
    ("42 ext", "extension type 5", manifest_bytes(lambda e: b"\xd4\x05\x00")),
    ("43 timestamp", "extension type -1", manifest_bytes(lambda e: b"\xd6\xff" + bytes(4))),
    ("44 bin key", "not a string", manifest_bytes(lambda e: b"\x81\xc4\x01a\x01")),
    ("45 int key", "not a string", manifest_bytes(lambda e: b"\x81\x01\x01")),
    ("46 NaN", "finite", edge("provenance", "q", to=float("nan"))),
    ("47 Inf", "finite", edge("provenance", "q", to=float("-inf"))),
    ("48 array32", "ends inside", manifest_bytes(lambda e: b"\xdd\xff\xff\xff\xff")),
    ("49 map32", "ends inside", manifest_bytes(lambda e: b"\xdf\x80\x00\x00\x00")),
    ("50 nesting 2000", "deeper", manifest_bytes(lambda e: deep(2_000))),
    ("51 nesting 100", "deeper", manifest_bytes(lambda e: deep(100))),
    ("52 not UTF-8", "UTF-8", manifest_bytes(lambda e: b"\xa1\xff")),
    ("53 float32", "32-bit float", manifest_bytes(lambda e: b"\xca" + bytes(4))),
    ("54 empty map", "lane 4 (EDGE) .format: missing", manifest_bytes(lambda e: b"\x80")),
    ("55 array", "expected a map", manifest_bytes(lambda e: b"\x90")),
    ("56 bool for int", ".model.trunk.layers", edge("model", "trunk", "layers", to=True)),
    ("57 surrogate", "UTF-8", manifest_bytes(lambda e: b"\xa3\xed\xa0\x80")),
    ("58 DICT no msgpack", "lane 1 (DICT) byte 0", forge(lambda f: f.raw.update({1: b"\xc1"}))),
    (
        "59 4 GiB bin",
        "lane 1 (DICT) byte 5: ends",
        forge(lambda f: f.raw.update({1: b"\xc6\xff\xff\xff\xff"})),
    ),
]


def name0(to):
    return edge("tensors", 0, "name", to=to)


def swap_neighbours(f):
    t = f.edge["tensors"]
    t[0], t[1] = t[1], t[0]


def swap_components(f):
    c = f.edge["components"]
    c[1], c[2] = c[2], c[1]


def misfile(f):
    moved = f.edge["components"][1]["tensors"].pop()
    f.edge["components"][2]["tensors"].insert(0, moved)


def transpose(f):
    e = f.entry("trunk.layer0.ffn.fc1.weight")
    e["shape"] = e["shape"][::-1]


def overlap(f):
    f.edge["tensors"][1]["offset"] = f.edge["tensors"][0]["offset"]


def shift(by):
    def change(f):
        f.entry(Q)["offset"] += by

    return forge(change)


FORM = "expected a string of the form [a-z0-9_]"

TABLE = [
    ("60 duplicate name", ".tensors[1].name", edge("tensors", 1, "name", to="embedding.scale")),
    ("61 order", ".tensors[0].name", forge(swap_neighbours)),
    ("62 components", ".components[1].name", forge(swap_components)),
    ("63 path", FORM, name0("../../etc/passwd")),
    ("64 NUL", FORM, name0("embedding.scale\0")),
    ("65 newline", FORM, name0("embedding.scale\n")),
    ("66 homoglyph", FORM, name0("еmbedding.scale")),
    ("67 override", FORM, name0("embedding.\u202escale")),
    ("68 empty name", FORM, name0("")),
    ("69 10 kB name", FORM, name0("a" * 10_000)),
    ("70 misfiled", ".components[1].tensors", forge(misfile)),
    ("71 expert10", ".name", entry(Q, "name", Q.replace("expert0", "expert10"))),
    ("72 huge dims", ".shape", entry(Q, "shape", [1 << 31] * 4)),
    ("73 zero dim", ".shape[0]", entry(Q, "shape", [0, 32])),
    ("74 negative dim", ".shape[1]", entry(Q, "shape", [32, -32])),
    ("75 rank 0", ".shape", entry(Q, "shape", [])),
    ("76 rank 200", ".shape", entry(Q, "shape", [1] * 198 + [32, 32])),
    ("77 float dim", ".shape[0]", entry(Q, "shape", [32.0, 32])),
    ("78 transposed", ".shape[0]", forge(transpose)),
    ("79 bool dim", ".shape[0]", entry(Q, "shape", [True, 32])),
    ("80 dtype", ".dtype", entry(Q, "dtype", "int4")),
    ("81 float32", ".dtype", entry(Q, "dtype", "float32")),
    ("82 stored short", ".stored", entry(Q, "stored", 992)),
    ("83 stored odd", ".stored", entry(Q, "stored", 1025)),
    ("84 stored huge", ".stored", entry(Q, "stored", 1 << 63)),
    ("85 overlap", ".tensors[1].offset", forge(overlap)),
    ("86 misaligned", ".offset", shift(32)),
    ("87 past FIELD", ".offset", shift(1 << 40)),
    ("88 negative", ".offset", shift(-(1 << 40))),
    ("89 hole", ".tensors: 142", forge(drop(Q))),
    ("90 no expert3", ".tensors", forge(drop("expert3."))),
    ("90 no trunk", ".tensors", forge(drop("trunk."))),
    ("91 extra key", "unknown key 'note'", entry(Q, "note", 1)),
    ("92 missing key", ".axis: missing", forge(lambda f: f.entry(Q).pop("axis"))),
    ("93 chunks", ".chunks", entry(Q, "chunks", [bytes(32)] * 2)),
    ("94 31 bytes", ".chunks[0]", entry(Q, "chunks", [bytes(31)])),
    (
        "95 empty component",
        ".components",
        forge(lambda f: f.edge["components"].append({"name": "zero", "tensors": []})),
    ),
    (
        "96 duplicate component",
        ".components",
        forge(lambda f: f.edge["components"].insert(1, f.edge["components"][0])),
    ),
    ("97 scale missing", ".scale", entry(Q, "scale", "expert0.layer0.attn.q_proj.scales")),
    (
        "98 int8 scale",
        ".dtype",
        entry("expert0.layer0.attn.q_proj.scale", "dtype", "int8"),
    ),
    ("99 axis", ".axis", entry(Q, "axis", 2)),
    ("99 other axis", ".axis", entry(Q, "axis", 0)),
    ("105 infinite scale", ".exponent", entry("router.bias", "exponent", 128)),
    ("residual's exponent", ".exponent", entry("trunk.residual", "exponent", 30)),
    ("exponent of int8", "unknown key 'exponent'", entry(Q, "exponent", 0)),
]


def lose_last_token(f):
    f.dict["tokens"].pop()
    f.dict["merges"].pop()


MEANING = [
    ("DICT's fold", "lane 1 (DICT) .fold", forge(lambda f: f.dict.update(fold="⟁UI_FOLD⟁"))),
    ("LANE's fold", "lane 3 (LANE) .fold", forge(lambda f: f.stream.update(fold="⟁UI_FOLD⟁"))),
    ("two stops", ".defaults.stop", forge(lambda f: f.stream["defaults"].update(stop=[2, 2]))),
    ("routing component", ".routing[1].component", edge("routing", 1, "component", to="expert0")),
    ("routing twice", ".routing[1].expert", edge("routing", 1, "expert", to=0)),
    ("113 routing domain", ".routing[0].domain", edge("routing", 0, "domain", to="math")),
    ("129 duplicate token", ".tokens[258]", forge(lambda f: f.dict["tokens"].insert(258, b"aa"))),
    ("129 hole in ids", ".tokens: 287", forge(lose_last_token)),
    ("129 lost byte", "0x07", forge(lambda f: f.dict["tokens"].__setitem__(7, b"seven"))),
    ("129 token type", ".tokens[9]", forge(lambda f: f.dict["tokens"].__setitem__(9, "x"))),
    ("129 merge result", ".merges[0]", forge(lambda f: f.dict["merges"].__setitem__(0, [1, 2]))),
    ("129 merge twice", ".merges[1]", forge(lambda f: f.dict["merges"].__setitem__(1, [97, 97]))),
    ("129 merge id", ".merges[2]", forge(lambda f: f.dict["merges"].__setitem__(2, [97, 288]))),
    ("129 special id", ".specials", forge(lambda f: f.dict["specials"].update({"<|eod|>": 5}))),
    ("130 hidden", ".tensors[1].shape", edge("model", "trunk", "hidden", to=96)),
    ("130 layers", ".tensors", edge("model", "trunk", "layers", to=3)),
    ("130 vocab", ".tokens", edge("model", "vocab", to=320)),
    ("130 vocab of 300", ".model.vocab", edge("model", "vocab", to=300)),
    ("130 odd heads", ".model.trunk.heads", edge("model", "trunk", "heads", to=5)),
    ("130 domains", ".model.domains[1]", edge("model", "domains", 1, to="code")),
    ("131 folds", ".folds", edge("folds", "⟁UI_FOLD⟁", to="BATCH")),
    ("131 extra fold", ".folds", edge("folds", "⟁NEW_FOLD⟁", to="BATCH")),
    ("132 two folds", ".lanes.BATCH", edge("lanes", "BATCH", to=["⟁COMPUTE_FOLD⟁", "⟁UI_FOLD⟁"])),
    ("132 other fold", ".lanes.BATCH", edge("lanes", "BATCH", to="⟁UI_FOLD⟁")),
    (
        "133 operator",
        "lane 5 (BATCH) .operators",
        forge(lambda f: f.batch["operators"].append({"name": "zz", "fold": "⟁COMPUTE_FOLD⟁"})),
    ),
    (
        "133 operator's fold",
        ".operators[0].fold",
        forge(lambda f: f.batch["operators"][0].update({"fold": "⟁UI_FOLD⟁"})),
    ),
    ("rounding", ".rounding", forge(lambda f: f.batch.update({"rounding": "a >> k"}))),
    (
        "phases",
        ".phases.transitions[1][0]",
        edge("phases", "transitions", 1, 0, to="VOID"),
    ),
    ("provenance bytes", ".provenance.'x'", edge("provenance", "x", to=b"1")),
    ("parent", ".parent", edge("parent", to=b"short")),
    ("method", ".method", edge("method", to="per_tensor_int8")),
    ("defaults", ".defaults.stop[0]", forge(lambda f: f.stream["defaults"].update(stop=[288]))),
    (
        "defaults no map",
        "lane 3 (LANE) .defaults",
        forge(lambda f: f.stream.update({"defaults": [1]})),
    ),
    (
        "answer",
        ".answers[0].logits",
        forge(
            lambda f: f.stream["answers"].append(
                {"domain": "code", "prompt": [1], "output": [2], "logits": []}
            )
        ),
    ),
    (
        "answer's digest",
        ".answers[0].logits[0]",
        forge(
            lambda f: f.stream["answers"].append(
                {"domain": "code", "prompt": [1], "output": [2], "logits": [bytes(31)]}
            )
        ),
    ),
    (
        "answer's domain",
        ".answers[0].domain",
        forge(
            lambda f: f.stream["answers"].append(
                {"domain": ["code"], "prompt": [1], "output": [2], "logits": [bytes(32)]}
            )
        ),
    ),
]


K = "expert0.layer0.attn.k_proj.weight"
LAST = "trunk.layer1.ffn_norm.gain"  # '.' sorts below '_': behind ffn.fc2


def set_byte(name, index, value):
    """Change one stored byte of a tensor; −1 is the last."""

    def change(f):
        e = f.entry(name)
        f.field[e["offset"] + index % e["stored"]] = value

    return change


def swap_experts(f):
    for e in f.edge["tensors"]:
        if e["name"].startswith("expert0."):
            other = f.entry(e["name"].replace("expert0", "expert1"))
            a, b = (slice(t["offset"], t["offset"] + t["stored"]) for t in (e, other))
            f.field[a], f.field[b] = f.field[b], f.field[a]


def gap_byte(f):
    e = f.entry("router.weight")  # the last of its component: a page boundary follows
    f.field[e["offset"] + e["stored"]] = 1


def rehashed(change):
    def mutate(f):
        change(f)
        f.rehash()

    return mutate


DATA = [  # these open; whoever touches the tensor is told
    ("100 q and k hashes", f"{K} chunk 0", lambda f: f.swap(Q, K, "chunks")),
    ("101 weight bit", f"{Q} chunk 0", set_byte(Q, 5, 0x77)),
    ("102 first byte", "embedding.scale chunk 0", set_byte("embedding.scale", 0, 0x77)),
    ("103 last byte", f"{LAST} chunk 0", set_byte(LAST, -1, 0x77)),
    ("104 negative scale", "router.scale: scale 0", rehashed(set_byte("router.scale", 3, 0x80))),
    ("106 padding", "router.bias padding", rehashed(set_byte("router.bias", -1, 1))),
    ("107 gap", "gap after tensor router.weight", rehashed(gap_byte)),
    ("108 experts swapped", "expert0.", swap_experts),
    ("residual of 30 bits", "trunk.residual", rehashed(set_byte("trunk.residual", 0, 30))),
    ("111 -128", f"{Q}: value 5", rehashed(set_byte(Q, 5, 0x80))),
]


def resize_field(size):
    def change(f):
        f.field = f.field[:size] if size < 0 else f.field + bytes(size)

    return forge(change)


def biggest(f):
    """Dimensions of 19,703 tensors in a manifest of 114."""
    for stack in ("trunk", "expert"):
        f.edge["model"][stack]["layers"] = 64
    f.edge["model"]["domains"] = [f"d{i}" for i in range(16)]


def many_tokens(f):
    f.raw[1] = pack(f.dict).replace(
        pack("tokens") + b"\xdc\x01\x20", pack("tokens") + b"\xdc\xff\xff"
    )


SIZES = [
    ("109 FIELD longer", "lane 2 (FIELD) length", resize_field(32)),
    ("110 FIELD shorter", "lane 2 (FIELD) length", resize_field(-32)),
    ("135 sixty thousand tensors", ".tensors: 143", forge(biggest)),
    ("136 nothing but lists", "expected a map", manifest_bytes(lambda e: b"\x93" + b"\x90" * 3)),
    ("137 claimed tokens", "lane 1 (DICT)", forge(many_tokens)),
    ("138 map of floats", "finite", edge("provenance", to={"a": [float("nan")] * 9})),
    (
        "139 hashes not bound",
        ".hashes.meta",
        forge(lambda f: f.edge["provenance"].update(seed=7), bind=False),
    ),
    ("140 shape as map", ".shape", entry(Q, "shape", {"0": 32})),
    (
        "141 tensors as map",
        ".tensors",
        forge(lambda f: f.edge.update(tensors={}), field_hash=bytes(32)),
    ),
    ("142 model missing", ".model: missing", forge(lambda f: f.edge.pop("model"), bind=False)),
    (
        "143 null name",
        "expected a string",
        forge(lambda f: f.edge["tensors"][0].update(name=None), field_hash=bytes(32)),
    ),
    ("144 nested provenance", "deeper", edge("provenance", "x", to=[[[[[[[[[[[1]]]]]]]]]]])),
    (
        "145 token of 64 KiB + 1",
        ".tokens[280]",
        forge(lambda f: f.dict["tokens"].__setitem__(280, b"x" * 65_537)),
    ),
    (
        "146 answer too long",
        ".answers[0].output",
        forge(
            lambda f: f.stream["answers"].append(
                {
                    "domain": "code",
                    "prompt": [1] * 40,
                    "output": [2] * 40,
                    "logits": [bytes(32)] * 40,
                }
            )
        ),
    ),
]
REFUSED_ON_OPEN = HEAD + LANES + ENCODING + TABLE + MEANING + SIZES


# What no file can betray: only a pinned root or a signature tells them from the original.


def honest(change):
    def mutate(f):
        change(f)
        f.rehash()

    return forge(mutate)


def edit_answer(f):
    f.stream["answers"] = [{"domain": "code", "prompt": [1], "output": [2], "logits": [bytes(32)]}]


HONEST = [
    ("112 weight", honest(set_byte(Q, 5, 0x11))),
    (
        "113 routing",
        honest(
            lambda f: (
                f.edge["model"]["domains"].reverse(),
                [
                    r.update(domain=d)
                    for r, d in zip(f.edge["routing"], f.edge["model"]["domains"], strict=True)
                ],
            )
        ),
    ),
    (
        "114 token",
        honest(
            lambda f: f.dict["specials"].clear() or f.dict["tokens"].__setitem__(256, b"<|eoz|>")
        ),
    ),
    ("115 answer", honest(edit_answer)),
    (
        "134 control bytes",
        honest(lambda f: f.edge["provenance"].update(prompt="".join(map(chr, range(32))))),
    ),
]
