import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from s7jax.config import PRESETS, Domain
from s7jax.data import builtin, documents
from s7jax.data import prepare as data_prepare
from s7jax.data.builtin import math
from s7jax.data.documents import Counts
from s7jax.data.files import listing
from s7jax.data.job import How
from s7jax.data.prepare import prepare
from s7jax.data.prepared import SPLITS, Prepared, manifest_digest, token_dtype
from s7jax.data.sources import Source
from s7jax.data.tokenizer import Tokenizer
from s7jax.errors import InputError, UsageError

DOMAINS = PRESETS["s7-nano"].model.domains

NUMBERS = {"vocab": 320, "context": 16, "held_out": 0.2}  # as the fixture ``small``
ARGUMENTS = NUMBERS | {"domains": PRESETS["s7-nano"].domains}


def read(domain, path):
    """The documents of a source by themselves."""
    source = Source(path=(str(path),))
    found = listing(domain, str(path)).files
    return documents.read(source, found, Counts(), limit=1 << 28, skip_bad=False)


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
    """Prepare in a process of its own: a script without a guard for the processes it starts."""
    sources = {domain: [str(p) for p in paths] for domain, paths in small_sources.items()}
    code = (
        "import os, signal\nfrom s7jax.config import PRESETS\nfrom s7jax.data import prepare as p\n"
        "domains = PRESETS['s7-nano'].domains\n"
        f"{before}\np.prepare({sources!r}, {str(out)!r}, workers={workers}, domains=domains,"
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
    shrink = "p._TASK = 2_000"  # many tasks, so that workers really share the work
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


def test_any_number_of_buckets_gives_the_same_bytes(small, small_sources, tmp_path, monkeypatch):
    for buckets in (1, 13):
        monkeypatch.setattr("s7jax.data.job._buckets", lambda *_, b=buckets: b)
        other = prepare(small_sources, tmp_path / str(buckets), workers=1, **ARGUMENTS)
        assert list(files_of(other).values()) == list(files_of(small).values())


KILL = """
from s7jax.data import stages
work, calls = stages.{name}, 0
def killed(*args):
    global calls
    calls += 1
    if calls == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return work(*args)
stages.{name} = killed
"""


@pytest.mark.parametrize(
    "where",  # function, its how many-eth call, what is done by then and not done again
    [
        ("_read", 3, "read/*.texts"),
        ("_clean", 2, "read/*.texts"),
        ("_tokenise", 3, "tokens/*.tokens"),
        ("pack", 5, "../code/train*"),
    ],
)
def test_killed_and_run_again_gives_the_same_bytes(
    small, small_sources, tmp_path, where, monkeypatch
):
    name, call, done = where
    out = tmp_path / "o"
    run = run_prepare(small_sources, out, before=KILL.format(name=name, call=call))
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert not (out / "manifest.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in (out / ".work").glob(done)}
    assert kept
    seen, publish = {}, data_prepare._publish

    def shown(job, *rest):  # when all is packed, before the work folder goes
        seen.update({path: path.stat().st_mtime_ns for path in job.work.glob(done)})
        publish(job, *rest)

    monkeypatch.setattr(data_prepare, "_publish", shown)
    prepared = prepare(small_sources, out, workers=1, **ARGUMENTS)
    assert kept.items() <= seen.items()
    assert list(files_of(prepared).values()) == list(files_of(small).values())


def test_a_worker_that_is_killed_is_replaced(small, small_sources, tmp_path, monkeypatch):
    # What every Python imports when it starts, the workers too.
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    (tmp_path / "sitecustomize.py").write_text(f"""
import os, pathlib, signal
from s7jax.data import stages
mark = pathlib.Path({str(tmp_path / "mark")!r})
work = stages._clean
def killed(task):
    if task.bucket == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return work(task)
stages._clean = killed
""")
    run = run_prepare(small_sources, tmp_path / "o", workers=2)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "mark").exists()
    assert list(files_of(Prepared.load(tmp_path / "o")).values()) == list(files_of(small).values())


@pytest.mark.parametrize("limit", [3_000, 30_000, 200_000])
def test_a_full_disk_is_said_and_work_goes_on_when_there_is_room(
    small, small_sources, tmp_path, limit
):
    """At different stages: no file may be larger. What is done stays, what is half done goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises((InputError, OSError), match="File too large") as e:
            prepare(small_sources, tmp_path, workers=1, **ARGUMENTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(tmp_path) in str(e.value)
    assert not (tmp_path / "manifest.json").exists()
    prepared = prepare(small_sources, tmp_path, workers=1, **ARGUMENTS)
    assert list(files_of(prepared).values()) == list(files_of(small).values())


def test_interrupted_then_other_arguments_starts_anew(small_sources, tmp_path):
    out = tmp_path / "o"
    run_prepare(small_sources, out, before=KILL.format(name="_tokenise", call=2))
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
    with pytest.raises(InputError, match=r"other sources or arguments.*seed is 0 there, 1 here"):
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


def test_a_source_that_is_not_there_leaves_nothing(small_sources, tmp_path):
    with pytest.raises(InputError, match="none does not exist"):
        prepare(
            {**small_sources, "math": [tmp_path / "none"]}, tmp_path / "o", workers=1, **ARGUMENTS
        )
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "change", [{"held_out": 0.0}, {"held_out": 1.0}, {"context": 1}, {"vocab": 100}, {"workers": 0}]
)
def test_arguments_out_of_range_are_usage_errors(small_sources, tmp_path, change):
    with pytest.raises(UsageError, match=next(iter(change)).replace("_", "-")):
        prepare(small_sources, tmp_path, **({"workers": 1} | ARGUMENTS | change))


def test_the_tokenizer_sees_only_training_text_and_no_more_than_asked(
    small, small_sources, tmp_path, monkeypatch
):
    seen = []
    train = Tokenizer.train
    monkeypatch.setattr("s7jax.data.job._SAMPLE_AT_LEAST", 5_000 * len(DOMAINS))
    monkeypatch.setattr("s7jax.data.job._SAMPLE_PER_TOKEN", 1)
    monkeypatch.setattr(Tokenizer, "train", lambda t, v: seen.extend(t) or train(t, v))
    prepare(small_sources, tmp_path, workers=1, **ARGUMENTS)
    for domain in DOMAINS:
        given = {d.text for path in small_sources[domain] for d in read(domain, path)}
        chosen = [text for text in seen if text in given]
        assert not set(chosen) & set(texts(small, domain, "held_out"))
        size = sum(map(len, chosen))
        assert 5_000 <= size < 5_000 + max(map(len, chosen))


def source_texts(small_sources, domain):
    return [json.loads(line)["text"] for line in small_sources[domain][0].read_text().splitlines()]


def counts(prepared, domain):
    entry = next(d for d in prepared.manifest["domains"] if d["name"] == domain)
    return entry["sources"][0]


def test_a_text_in_two_domains_stays_in_the_first(small, small_sources, tmp_path):
    copies = source_texts(small_sources, "code")[:10]
    path = tmp_path / "math.jsonl"
    path.write_text(
        small_sources["math"][0].read_text() + "\n".join(json.dumps({"text": t}) for t in copies)
    )
    other = prepare({**small_sources, "math": [path]}, tmp_path / "o", workers=1, **ARGUMENTS)
    assert counts(other, "math")["skipped"] == {"duplicates": 10}
    for split in SPLITS:
        np.testing.assert_array_equal(stored(other, "math", split), stored(small, "math", split))


def test_evaluation_sets_are_kept_out(small_sources, tmp_path):
    text = source_texts(small_sources, "reason")[3]
    words = text.split()[:30]
    (tmp_path / "eval.jsonl").write_text(
        json.dumps({"question": "Well, " + "\n".join(words).upper()})
    )
    how = How(against=(str(tmp_path / "eval.jsonl"),))
    clean = prepare(small_sources, tmp_path / "o", workers=1, how=how, **ARGUMENTS)
    together = {t for s in SPLITS for t in texts(clean, "reason", s)}
    assert text not in together
    assert counts(clean, "reason")["skipped"]["contaminated"] >= 1
    assert len(clean.manifest["against"]) == 64


def test_near_duplicates_go_from_both_splits(small_sources, tmp_path):
    words = [f"w{i}" for i in range(400)]
    lines = []
    for group in range(40):
        own = [f"{word}g{group}" for word in words]
        for copy in range(3):
            lines.append(json.dumps({"text": " ".join([*own, f"copy{copy}"])}))
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    sources = {**small_sources, "general": [tmp_path / "a.jsonl"]}
    how = How(near=0.8)
    clean = prepare(sources, tmp_path / "o", workers=1, how=how, **ARGUMENTS)
    assert counts(clean, "general")["skipped"]["near duplicates"] == 80
    assert counts(clean, "general")["train"] + counts(clean, "general")["held_out"] == 40


def test_a_weight_draws_some_documents_or_repeats_all_that_are_trained_on(
    small, small_sources, tmp_path
):
    once = counts(small, "code")
    for weight in (0.5, 2.0):
        path = str(small_sources["code"][0])
        sources = {**small_sources, "code": [{"path": path, "weight": weight}]}
        other = prepare(sources, tmp_path / str(weight), workers=1, **ARGUMENTS)
        if weight == 2:
            assert counts(other, "code")["train"] == 2 * once["train"]
            assert counts(other, "code")["held_out"] == once["held_out"]
        else:
            drawn = counts(other, "code")["train"] + counts(other, "code")["held_out"]
            assert drawn + counts(other, "code")["skipped"]["not drawn"] == once["records"]
            assert 10 < drawn < 50


def test_finished_data_stands_on_its_shards(small_sources, tmp_path):
    gone = {}
    for domain, (path,) in small_sources.items():
        gone[domain] = [tmp_path / path.name]
        gone[domain][0].write_bytes(path.read_bytes())
    first = prepare(gone, tmp_path / "o", workers=1, **ARGUMENTS)
    for (path,) in gone.values():
        path.unlink()
    (tmp_path / "o").rename(tmp_path / "moved")
    again = prepare(gone, tmp_path / "moved", workers=1, reread=False, **ARGUMENTS)
    assert again.digest == first.digest
    with pytest.raises(InputError, match="does not exist"):
        prepare(gone, tmp_path / "moved", workers=1, **ARGUMENTS)


def test_a_built_in_corpus_of_another_python_is_named_and_not_needed(
    small_sources, tmp_path, monkeypatch
):
    """Its text is the running interpreter's library; what is finished stands on its shards."""
    texts = source_texts(small_sources, "code")
    monkeypatch.setattr(
        builtin, "documents", lambda _: [documents.Document(t, "library") for t in texts]
    )
    sources = {domain: given for domain, given in small_sources.items() if domain != "code"}
    first = prepare(sources, tmp_path, workers=1, **ARGUMENTS)
    texts[0] += " in another version"
    again = prepare(sources, tmp_path, workers=1, reread=False, **ARGUMENTS)
    assert again.digest == first.digest
    with pytest.raises(InputError, match="'built-in code' is another one; it is the running Py"):
        prepare(sources, tmp_path, workers=1, **ARGUMENTS)


def test_a_domain_is_added_without_the_old_text_and_as_if_it_had_been_there(
    small_sources, tmp_path
):
    law = tmp_path / "law.jsonl"
    lines = [json.dumps({"text": f"Article {i}. " + "whereas the party " * 9}) for i in range(80)]
    shared = source_texts(small_sources, "code")[:5]
    law.write_text("\n".join([*lines, *(json.dumps({"text": t}) for t in shared)]))
    domains = (*ARGUMENTS["domains"], Domain(name="law", share=0, tokens=1))
    arguments = ARGUMENTS | {"domains": domains, "workers": 1}
    sources = {**small_sources, "law": [law]}
    whole = prepare(sources, tmp_path / "whole", **arguments)
    prepare(small_sources, tmp_path / "o", workers=1, **ARGUMENTS)
    nothing = {d: ["/nowhere.txt"] for d in DOMAINS}
    grown = prepare({**nothing, "law": [law]}, tmp_path / "o", reread=False, **arguments)
    assert grown.digest == whole.digest
    assert files_of(grown).keys() != files_of(whole).keys()
    assert list(files_of(grown).values()) == list(files_of(whole).values())
    assert counts(grown, "law")["skipped"] == {"duplicates": 5}


def test_equal_keys_mean_equal_digests_however_a_file_is_read(small_sources, tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    texts = source_texts(small_sources, "code")
    for i in range(0, len(texts), 6):
        rows = "".join(json.dumps({"text": t}) + "\n" for t in texts[i : i + 6])
        (folder / f"{i:03}.json").write_text(rows)
    sources = {**small_sources, "code": [folder]}
    first = prepare(sources, tmp_path / "o", workers=1, **ARGUMENTS)
    for path in folder.iterdir():
        path.rename(path.with_suffix(".jsonl"))
    again = prepare(sources, tmp_path / "o", workers=1, **ARGUMENTS)
    other = next(folder.iterdir())
    whole = other.read_bytes()
    other.write_bytes(whole + b'{"text": "more"}\n')
    with pytest.raises(InputError, match="code: the text of 'd' is another one"):
        prepare(sources, tmp_path / "o", workers=1, **ARGUMENTS)
    other.write_bytes(whole)
    fresh = prepare(sources, tmp_path / "p", workers=1, **ARGUMENTS)
    assert again.manifest["key"] == fresh.manifest["key"] == first.manifest["key"]
    assert counts(first, "code")["train"] == counts(fresh, "code")["train"]
    for split in SPLITS:
        np.testing.assert_array_equal(stored(first, "code", split), stored(fresh, "code", split))


def test_a_given_tokenizer_is_used_and_one_of_another_size_refused(small, small_sources, tmp_path):
    how = How(tokenizer=small.path / "tokenizer.json")
    other = prepare(small_sources, tmp_path / "o", workers=1, how=how, **ARGUMENTS)
    assert other.manifest["domains"] == small.manifest["domains"]
    assert other.manifest["key"] != small.manifest["key"]  # no document decides it any more
    with pytest.raises(UsageError, match=r"tokenizer\.json: 320 tokens, the preset has 400"):
        prepare(small_sources, tmp_path / "p", workers=1, how=how, **(ARGUMENTS | {"vocab": 400}))
    assert not (tmp_path / "p").exists()


@pytest.fixture(scope="module")
def more(small_sources, tmp_path_factory):
    """New text for code, some of which the small corpora hold already: in code, and in math."""
    path = tmp_path_factory.mktemp("more") / "more.jsonl"
    texts = [math.document(99, i) for i in range(50)]
    texts += source_texts(small_sources, "code")[:4] + source_texts(small_sources, "math")[:3]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_finished_data_grows_by_new_text_alone(small, more, tmp_path):
    before = files_of(small)
    how = How(grow=small.path)
    grown = prepare({"code": [more]}, tmp_path / "o", workers=1, how=how, **ARGUMENTS)
    assert files_of(small) == before
    grown.verify()
    assert grown.tokenizer.digest == small.tokenizer.digest
    old, new = (p.manifest["domains"][0] for p in (small, grown))
    assert new["sources"][:-1] == old["sources"]
    assert new["sources"][-1]["skipped"] == {"duplicates": 7}
    assert new["sources"][-1]["train"] + new["sources"][-1]["held_out"] == 50
    assert grown.manifest["domains"][1:] == small.manifest["domains"][1:]
    for split in SPLITS:  # what was there stays in its place, also what evaluations look at
        rows = small.rows("code", split)
        assert grown.rows("code", split) > rows
        found = stored(grown, "code", split)
        np.testing.assert_array_equal(found[:rows], stored(small, "code", split))
        assert len(found) == grown.rows("code", split)
    whole = {t for s in SPLITS for t in texts(grown, "code", s)}
    assert len(whole & {math.document(99, i) for i in range(50)}) >= 45  # ends of rows are cut


def test_growing_again_finds_what_growing_has_added(small, small_sources, more, tmp_path):
    first = prepare(
        {"code": [more]}, tmp_path / "1", workers=1, how=How(grow=small.path), **ARGUMENTS
    )
    again = prepare(
        {"code": [more]}, tmp_path / "1", workers=1, how=How(grow=small.path), **ARGUMENTS
    )
    assert again.digest == first.digest
    other = tmp_path / "math.jsonl"
    fresh = [math.document(98, i) for i in range(40)]
    seen = [json.loads(line)["text"] for line in more.read_text().splitlines()[:9]]
    other.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*fresh, *seen]))
    how = How(grow=first.path)
    second = prepare({"math": [other]}, tmp_path / "2", workers=1, how=how, **ARGUMENTS)
    assert second.manifest["domains"][1]["sources"][-1]["skipped"] == {"duplicates": 9}
    assert second.manifest["domains"][0] == first.manifest["domains"][0]
    with pytest.raises(InputError, match=r"code: 0 train tokens.*left out: 57 duplicates"):
        prepare({"code": [more]}, tmp_path / "3", workers=1, how=how, **ARGUMENTS)
    how = How(grow=small.path)
    with pytest.raises(InputError, match="it was grown from other data"):
        prepare({"math": [other]}, tmp_path / "2", workers=1, how=how, **ARGUMENTS)
    with pytest.raises(InputError, match=r"code: the text of 'math.jsonl' is another one|is of"):
        prepare({"code": [other]}, tmp_path / "1", workers=1, how=how, **ARGUMENTS)
    with pytest.raises(InputError, match=r"it was grown from data \w{12} \(--grow\)"):
        prepare(small_sources, tmp_path / "1", workers=1, **ARGUMENTS)


def test_growing_is_the_same_bytes_for_any_workers_and_after_a_kill(
    small, more, tmp_path, monkeypatch
):
    how = How(grow=small.path)
    one = prepare({"code": [more]}, tmp_path / "1", workers=1, how=how, **ARGUMENTS)

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(data_prepare, "_publish", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare({"code": [more]}, tmp_path / "2", workers=1, how=how, **ARGUMENTS)
    monkeypatch.setattr("s7jax.data.job._buckets", lambda *_: 7)
    two = prepare({"code": [more]}, tmp_path / "2", workers=1, how=how, **ARGUMENTS)
    (tmp_path / "3").mkdir()
    three = prepare({"code": [more]}, tmp_path / "3", workers=1, how=how, **ARGUMENTS)
    assert one.digest == two.digest == three.digest
    assert [*files_of(one).values()] == [*files_of(two).values()] == [*files_of(three).values()]


@pytest.mark.parametrize(
    ("how", "change", "message"),
    [
        ({}, {"seed": 1}, "its seed is 0, not 1"),
        ({}, {"held_out": 0.1}, r"its held-out is 0.2, not 0.1"),
        ({"skip_bad": True}, {}, "another --on-bad"),
        ({"against": "more"}, {}, "another --against"),
        ({"near": 0.8}, {}, "near duplicates of old text"),
        ({"tokenizer": True}, {}, "the tokenizer stays"),
        ({"grow": "nowhere"}, {}, "nowhere holds no manifest"),
    ],
)
def test_growing_in_another_way_is_refused(small, more, tmp_path, how, change, message):
    how = {"grow": small.path} | how
    if "tokenizer" in how:
        how["tokenizer"] = small.path / "tokenizer.json"
    if "against" in how:
        (tmp_path / "eval.txt").write_text(" ".join(map(str, range(20))))
        how["against"] = (str(tmp_path / "eval.txt"),)
    how["grow"] = Path(how["grow"])
    with pytest.raises((InputError, UsageError), match=message):
        prepare({"code": [more]}, tmp_path / "o", workers=1, how=How(**how), **(ARGUMENTS | change))
    assert not (tmp_path / "o/manifest.json").exists()


def test_growing_in_place_or_by_nothing_is_refused(small, more):
    before = files_of(small)
    for sources, message in (({"code": [more]}, "it stays as it is"), ({}, "--data")):
        out = small.path if sources else small.path / "x"
        with pytest.raises((InputError, UsageError), match=message):
            prepare(sources, out, workers=1, how=How(grow=small.path), **ARGUMENTS)
    assert files_of(small) == before
