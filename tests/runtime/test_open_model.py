"""One open model, as programs and people use it: many threads, dropped answers, pinned roots."""

import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from synthetic import MODEL, write_model

from s7jax import commands, s7l
from s7jax.errors import InputError, UsageError
from s7jax.runtime import Engine
from s7jax.runtime.compute import Compute, Reference
from s7jax.runtime.model import Model
from s7jax.runtime.replay import by_specification
from s7jax.runtime.sealing import seal_with_answers
from s7jax.s7l import note as notes

ROOT = Path(__file__).parents[2]
TEXTS = ["def f(x):", "2 + 2 =", "The moon", "Zwölf", "{", "caf\xff"]


@pytest.fixture(scope="module")
def model(seal):
    return Model(seal)


def test_many_threads_may_use_one_model(model):
    wanted = {text: model.generate(text, max_new_tokens=8).proof for text in TEXTS}
    found: list[tuple[str, object]] = []

    def ask(first):
        for text in TEXTS[first:] + TEXTS[:first]:
            found.append((text, model.generate(text, max_new_tokens=8).proof))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 * len(TEXTS)
    assert all(proof == wanted[text] for text, proof in found)


def test_two_threads_may_read_one_answer(model):
    answer, wanted = model.generate("Zwölf"), model.generate("Zwölf").text
    texts: list[str] = []
    threads = [threading.Thread(target=lambda: texts.append(answer.text)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [wanted] * 4


def test_a_dropped_answer_is_computed_no_further(model):
    dropped = model.generate("The moon", max_new_tokens=50, stop=[])
    next(iter(dropped))
    completion, engine = dropped.completion, model.engine(dropped.completion.request)
    del dropped
    gc.collect()
    assert model.generate("2 + 2 =", max_new_tokens=2).text is not None
    assert completion.reason == "client"
    assert len(completion.output) < 10
    assert not engine.busy


def interrupted(act: Callable[[], object], after: int) -> bool:
    """Whether an act was ended by an interrupt, when so many lines of the runtime had run."""
    left = after

    def trace(frame, event, argument):
        nonlocal left
        if "/runtime/" not in frame.f_code.co_filename:
            return None
        left -= event == "line"
        if left == 0:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        act()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def test_an_interrupt_at_any_line_spoils_nothing(model):
    ask, other = partial(model.generate, "{", max_new_tokens=3), "2 + 2 ="
    wanted, others = ask().report(), model.generate(other, max_new_tokens=2).report()
    outcomes, after = {True: 0, False: 0}, 1
    while True:
        kept = ask()
        if not interrupted(lambda kept=kept: kept.text, after):
            break
        try:
            assert kept.report() == wanted, f"another answer after line {after}"
        except InputError as e:
            assert "broke off in the middle of a step (KeyboardInterrupt())" in str(e)
        outcomes[bool(kept.completion.lost)] += 1
        assert model.generate(other, max_new_tokens=2).report() == others, f"line {after}"
        after += 11
    assert min(outcomes.values()) > 0
    assert after > 700


FORK = """
import os, signal, sys, threading
import s7jax
from s7jax.errors import InputError
model = s7jax.open(sys.argv[1])
answer = model.generate("{")
held = threading.Event()
def hold():
    with model._turn, answer._turn, answer._engine._turn, model.compute._turn:
        held.set()
        threading.Event().wait()
threading.Thread(target=hold, daemon=True).start()
held.wait()
if os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
signal.alarm(60)
for act in (lambda: answer.text, lambda: model.generate("{"), lambda: model.generate_all(["{"])):
    try:
        act()
    except InputError as e:
        print(e)
os._exit(sys.stdout.flush() or 0)
"""


def test_a_fork_is_refused_whatever_another_thread_does(sealed):
    command = [sys.executable, "-W", "ignore", "-c", FORK, sealed]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("opened in another process") == 3


@pytest.mark.parametrize("most", [2**64, 0, -1])
def test_impossible_numbers_of_tokens_are_refused(model, most):
    with pytest.raises(UsageError, match="max_new_tokens"):
        model.generate("x", max_new_tokens=most)
    assert model.generate("x", max_new_tokens=1).text is not None


def test_caches_out_of_proportion_are_refused_with_the_figure(compute):
    with pytest.raises(InputError, match=r"caches of 1048576 rows of 64 positions take [\d.]+ GiB"):
        Engine(compute, rows=1 << 20)


@pytest.mark.parametrize("open_", [Model, Reference])
def test_more_angles_than_a_file_pays_for_are_refused_before_they_are_made(tmp_path, open_):
    stack = MODEL["trunk"] | {"layers": 1, "hidden": 128, "heads": 1, "ffn": 1}
    write_model(tmp_path, MODEL | {"trunk": stack, "context": 1 << 16})
    s7l.seal(tmp_path / "weights", tmp_path / "vocab.json", tmp_path / "wide.s7l")
    with pytest.raises(InputError, match=r"head widths of 128 and 16 takes 4,718,592 angles"):
        open_(s7l.open(tmp_path / "wide.s7l"))


def test_scores_of_many_heads_are_refused_with_the_figure(tmp_path):
    stack = MODEL["trunk"] | {"layers": 1, "hidden": 128, "heads": 64, "ffn": 1}
    write_model(tmp_path, MODEL | {"trunk": stack, "context": 1 << 16})
    s7l.seal(tmp_path / "weights", tmp_path / "vocab.json", tmp_path / "many.s7l")
    seal = s7l.open(tmp_path / "many.s7l")
    with pytest.raises(InputError, match=r"caches of 1 rows of 65,536 positions take 2\.\d GiB"):
        Engine(Model(seal).compute)
    with pytest.raises(InputError, match=r"60,000 tokens take 7\.3 GiB for an operator in NumPy"):
        by_specification(seal)(np.zeros(60_000, np.int32), 59_999)


def run(tool: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "tools" / tool, *arguments]
    env = os.environ | environment
    return subprocess.run(
        command, env=env, capture_output=True, text=True, check=False, timeout=300
    )


def test_bytes_that_are_no_text_are_one_prompt_in_a_file_and_as_argument(model, sealed, tmp_path):
    (tmp_path / "prompt").write_bytes(b"caf\xff")
    options = sealed, "--max-tokens", 1, "--json"
    found = [
        json.loads(run("generate.py", *map(str, options), how, what).stdout)
        for how, what in (("--prompt", b"caf\xff"), ("--file", tmp_path / "prompt"))
    ]
    assert found[0] | {"seconds": 0} == found[1] | {"seconds": 0}
    assert found[0]["prompt_tokens"] == len(model.prompt(b"caf\xff").ids)


def test_a_device_that_computes_wrongly_is_refused(seal, monkeypatch):
    """As an H100 did whose compiler was wrong: all other answers would have been wrong, too."""
    monkeypatch.setattr(Compute, "on_cpu", property(lambda _: False))
    assert Model(seal).generate("x", max_new_tokens=2).proof  # it is right
    right = Compute.head
    monkeypatch.setattr(Compute, "head", lambda *args: right(*args) + 1)
    with pytest.raises(InputError, match="known answer code, step 0: other logits than sealed"):
        Model(seal)


def test_sealing_into_no_folder_names_the_folder(tmp_path):
    with pytest.raises(s7l.SealError, match="none: no such folder"):
        seal_with_answers(tmp_path, tmp_path, tmp_path / "none" / "model.s7l")


def test_a_proof_that_cannot_be_written_is_told_before_the_answer(sealed, tmp_path):
    done = run("generate.py", sealed, "--prompt", "x", "--proof", tmp_path / "none" / "out.s7p")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no such folder" in done.stderr


@pytest.mark.parametrize("tool", ["generate.py", "selftest.py", "serve.py"])
def test_what_was_verified_is_what_runs(sealed, tmp_path, tool):
    ask = ["--prompt", "x"] if tool == "generate.py" else []
    done = run(tool, sealed, *ask, "--root", "00" * 32)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "root" in done.stderr
    notes.new_key(tmp_path / "key.pem")
    done = run(tool, sealed, *ask, "--trust", tmp_path / "key.pem.pub")
    assert done.returncode == 1
    assert done.stdout == ""
    assert ".sig" in done.stderr


def test_a_reader_that_has_enough_of_an_answer_ends_it_quietly(sealed, tmp_path):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, ROOT / "tools/generate.py", sealed, "--prompt", "x"]
    with os.fdopen(write, "wb") as gone:
        done = subprocess.run(
            command, stdout=gone, stderr=subprocess.PIPE, text=True, check=False, timeout=300
        )
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_sound_file_is_sound_in_any_encoding(sealed, encoding):
    done = run("verify.py", sealed, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert "INT8" in done.stdout


@pytest.mark.parametrize("port", ["99999", "65536", "-1"])
def test_a_port_that_there_is_not_is_refused(port, capsys):
    with pytest.raises(SystemExit) as end:
        commands.run("serve", ["model.s7l", f"--port={port}"])
    assert end.value.code == 2
    assert f"--port {port}: expected 0 to 65535" in capsys.readouterr().err
