import hashlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from s7jax.config import PRESETS
from s7jax.data.corpus import corpora, sample
from s7jax.data.prepare import prepare
from s7jax.data.prepared import SPLITS, Prepared, manifest_digest, token_dtype
from s7jax.data.sources import read
from s7jax.errors import InputError, UsageError

DOMAINS = PRESETS["s7-nano"].model.domains

NUMBERS = {"vocab": 320, "context": 16, "held_out": 0.2}  # as the fixture ``small``
ARGUMENTS = NUMBERS | {"domains": PRESETS["s7-nano"].domains}


def stored(prepared, domain, split):
    """All rows of a split, straight from the files."""
    rows = []
    for shard in prepared.shards(domain, split):
        reader = ArrayRecordReader(str(shard))
        rows += [np.frombuffer(r, token_dtype(prepared.vocab)) for r in reader.read_all()]
        reader.close()
    return np.stack(rows)


def texts(prepared, domain, split):
    """The whole documents in a split's rows: all but the last, which may be cut off."""
    ids = stored(prepared, domain, split).ravel()
    parts = np.split(ids, np.flatnonzero(ids == prepared.tokenizer.eod) + 1)[:-1]
    return [prepared.tokenizer.decode(part).decode() for part in parts]


def files_of(prepared):
    return {p: p.read_bytes() for p in sorted(prepared.path.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("domain", DOMAINS)
def test_rows_hold_every_document_once_and_splits_are_disjoint(small, small_sources, domain):
    given = [d.text for path in small_sources[domain] for d in read(domain, path)]
    found = {split: texts(small, domain, split) for split in SPLITS}
    assert not set(found["train"]) & set(found["held_out"])
    together = found["train"] + found["held_out"]
    assert len(set(together)) == len(together)
    assert set(together) <= set(given)
    assert len(given) - len(together) <= 2  # the last one of a split may lose its end
    assert [t for t in given if t in set(found["train"])] != found["train"]  # shuffled
    assert 0 < len(found["held_out"]) < len(given) / 2


def test_the_manifest_tells_the_truth(small, small_sources):
    m = json.loads((small.path / "manifest.json").read_text())
    assert m["digest"] == manifest_digest(m) == small.digest
    assert [d["name"] for d in m["domains"]] == list(DOMAINS)
    for entry in m["domains"]:
        domain = entry["name"]
        given = [d.text for path in small_sources[domain] for d in read(domain, path)]
        assert sum(entry[s]["documents"] for s in SPLITS) == len(given)
        assert sum(entry[s]["bytes"] for s in SPLITS) == sum(len(t.encode()) for t in given)
        ids = small.tokenizer.encode_batch(given)
        assert sum(entry[s]["tokens"] for s in SPLITS) == sum(len(i) + 1 for i in ids)
        assert entry["sources"][0]["name"] == f"{domain}.jsonl"
        for split in SPLITS:
            rows = stored(small, domain, split)
            assert rows.shape == (entry[split]["rows"], small.context + 1)
            assert entry[split]["rows"] == entry[split]["tokens"] // 17 == small.rows(domain, split)
            for shard in entry[split]["shards"]:
                data = (small.path / domain / shard["name"]).read_bytes()
                assert shard["bytes"] == len(data)
                assert shard["sha256"] == hashlib.sha256(data).hexdigest()


def test_duplicates_are_dropped_and_order_of_sources_does_not_matter(
    small, small_sources, tmp_path
):
    lines = small_sources["code"][0].read_text().splitlines()
    (tmp_path / "code.jsonl").write_text("\n".join([*lines[::-1], *lines]))
    other = prepare(
        {**small_sources, "code": [tmp_path / "code.jsonl"]},
        tmp_path / "out",
        workers=1,
        **ARGUMENTS,
    )
    for split in SPLITS:
        np.testing.assert_array_equal(stored(other, "code", split), stored(small, "code", split))


def run_prepare(small_sources, out, *, workers=1, before="", seed="0"):
    """Prepare in a process of its own."""
    sources = {domain: [str(p) for p in paths] for domain, paths in small_sources.items()}
    code = (
        "import os, signal\nfrom s7jax.config import PRESETS\nfrom s7jax.data import prepare as p\n"
        "domains = PRESETS['s7-nano'].domains\n"
        f"{before}\nif __name__ == '__main__':\n"
        f"    p.prepare({sources!r}, {str(out)!r}, workers={workers}, domains=domains,"
        f" **{NUMBERS!r})\n"
    )
    script = out.with_suffix(".py")
    script.write_text(code)
    env = os.environ | {"PYTHONHASHSEED": seed}
    command = [sys.executable, script]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("workers", "seed"), [(1, "1"), (3, "2")])
def test_the_same_bytes_for_any_workers_and_hash_seed(
    small, small_sources, tmp_path, workers, seed
):
    shrink = "p._BATCH = 2_000"  # many batches, so that workers really share the work
    run = run_prepare(small_sources, tmp_path / "o", workers=workers, seed=seed, before=shrink)
    assert run.returncode == 0, run.stderr
    again = Prepared.load(tmp_path / "o")
    assert again.digest == small.digest
    assert list(files_of(again).values()) == list(files_of(small).values())


def test_the_seed_decides_the_order_and_nothing_else(small, small_sources, tmp_path):
    other = prepare(small_sources, tmp_path, workers=1, seed=1, **ARGUMENTS)
    one, two = (texts(p, "code", "train") for p in (small, other))
    assert len(set(one) ^ set(two)) <= 2  # the last one may lose its end
    common = set(one) & set(two)
    assert [t for t in one if t in common] != [t for t in two if t in common]


def test_packing_in_small_pieces_gives_the_same_bytes(small, small_sources, tmp_path, monkeypatch):
    monkeypatch.setattr("s7jax.data.sequences._GATHER", 50)
    pieces = prepare(small_sources, tmp_path, workers=1, **ARGUMENTS)
    assert list(files_of(pieces).values()) == list(files_of(small).values())


KILL = """
write, calls = p.{name}, 0
def killed(*args):
    global calls
    calls += 1
    if calls == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(*args)
p.{name} = killed
"""


@pytest.mark.parametrize(
    "where",  # function, its how many-eth call, domains finished by then
    [("write_json", 1, 0), ("write_shards", 4, 1), ("write_json", 4, 2), ("write_json", 6, 4)],
)
def test_killed_and_run_again_gives_the_same_bytes(small, small_sources, tmp_path, where):
    name, call, done = where
    out = tmp_path / "o"
    run = run_prepare(small_sources, out, before=KILL.format(name=name, call=call))
    assert run.returncode == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    kept = {d: [p.stat().st_ino for p in sorted((out / d).iterdir())] for d in DOMAINS[:done]}
    prepared = prepare(small_sources, out, workers=1, **ARGUMENTS)
    assert list(files_of(prepared).values()) == list(files_of(small).values())
    for domain, inodes in kept.items():  # a finished domain is not written again
        assert [p.stat().st_ino for p in sorted((out / domain).iterdir())] == inodes


def test_interrupted_then_other_arguments_starts_anew(small_sources, tmp_path):
    out = tmp_path / "o"
    run_prepare(small_sources, out, before=KILL.format(name="write_json", call=4))
    changed = prepare(small_sources, out, workers=1, seed=1, **ARGUMENTS)
    direct = prepare(small_sources, tmp_path / "p", workers=1, seed=1, **ARGUMENTS)
    assert list(files_of(changed).values()) == list(files_of(direct).values())


def test_a_finished_folder_is_checked_repaired_and_never_replaced(small_sources, tmp_path):
    out = tmp_path / "o"
    first = prepare(small_sources, out, workers=1, **ARGUMENTS)
    before = files_of(first)
    shard = first.shards("math", "train")[0]
    inode = first.shards("code", "train")[0].stat().st_ino
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match="SHA-256 differs"):
        first.verify()
    assert files_of(prepare(small_sources, out, workers=1, **ARGUMENTS)) == before
    assert first.shards("code", "train")[0].stat().st_ino == inode
    with pytest.raises(InputError, match="other sources or arguments"):
        prepare(small_sources, out, workers=1, seed=1, **ARGUMENTS)
    assert files_of(first) == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda o: (o / "manifest.json").unlink(), r"holds no manifest\.json"),
        (lambda o: (o / "manifest.json").write_text("{"), "not JSON"),
        (lambda o: (o / "manifest.json").write_text("[]"), "not the manifest"),
        (lambda o: edit(o, context=17), "digest is wrong"),
        (lambda o: edit(o, version=2), "version 2, expected 1"),
        (lambda o: next((o / "code").glob("train*")).unlink(), "bytes, found none"),
        (lambda o: os.truncate(next((o / "code").glob("train*")), 9), "bytes, found 9"),
    ],
)
def test_a_damaged_folder_is_refused(small_sources, tmp_path, damage, message):
    prepare(small_sources, tmp_path, workers=1, **ARGUMENTS)
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        Prepared.load(tmp_path)


def edit(out, **changes):
    path = out / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_swapped_tokenizer_is_refused(small_sources, tmp_path, tokenizer):
    prepared = prepare(small_sources, tmp_path, workers=1, **ARGUMENTS)
    tokenizer.save(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match="not the tokenizer"):
        _ = Prepared.load(prepared.path).tokenizer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": 100_000}, r"code: \d+ train tokens, needed at least 100001"),
        ({"held_out": 1e-9}, "code: 0 held-out tokens, needed at least 17"),
    ],
)
def test_too_little_text_says_how_much_there_is(small_sources, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        prepare(small_sources, tmp_path, workers=1, **(ARGUMENTS | change))
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize(
    "change", [{"held_out": 0.0}, {"held_out": 1.0}, {"context": 1}, {"vocab": 100}, {"workers": 0}]
)
def test_arguments_out_of_range_are_usage_errors(small_sources, tmp_path, change):
    with pytest.raises(UsageError, match=next(iter(change)).replace("_", "-")):
        prepare(small_sources, tmp_path, **({"workers": 1} | ARGUMENTS | change))


def test_the_tokenizer_sees_only_training_text_and_no_more_than_asked(small, small_sources):
    for corpus in corpora(PRESETS["s7-nano"].domains, small_sources):
        chosen = sample(corpus, 0.2, 5_000, lambda _: None)
        given = {d.text for d in corpus.read()}
        assert set(chosen.texts) <= given - set(texts(small, corpus.domain, "held_out"))
        size = sum(map(len, chosen.texts))
        assert 5_000 <= size < 5_000 + max(map(len, chosen.texts))
        assert chosen.bytes == sum(len(d.text.encode()) for d in corpus.read())
