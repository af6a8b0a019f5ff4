"""One open model, as programs and people use it: many threads, dropped answers, pinned roots."""

import gc
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from synthetic import MODEL, write_model

from s7jax import commands, runtime, s7l
from s7jax.errors import InputError, UsageError
from s7jax.runtime import Engine
from s7jax.runtime.compute import Compute, Reference
from s7jax.runtime.model import Model
from s7jax.runtime.proof import load
from s7jax.runtime.replay import by_specification
from s7jax.runtime.sealing import seal_with_answers
from s7jax.s7l import note as notes
from s7jax.storage import write_bytes

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
        lost = bool(kept.completion.lost)
        if lost:
            with pytest.raises(InputError, match=r"broke off in .* step \(KeyboardInterrupt\(\)\)"):
                kept.report()
        else:
            assert kept.report() == wanted, f"another answer after line {after}"
        outcomes[lost] += 1
        assert model.generate(other, max_new_tokens=2).report() == others, f"line {after}"
        after += 11
    assert min(outcomes.values()) > 0
    assert after > 700


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max_new_tokens": 2.0}, "max_new_tokens is 2.0; expected a whole number"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"top_k": "3"}, "top_k is '3'; expected a whole number"),
        ({"seed": None, "top_k": None}, "top_k is None"),
        ({"temperature": "0.5"}, "temperature is '0.5'; expected a number"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 10**400}, "temperature is 10+; expected a finite number"),
        ({"seed": 10**5_000}, "seed is a number of 16,610 bits"),
        ({"top_p": None}, "top_p is None; expected a number"),
        ({"stop": 5}, "stop is 5; expected whole numbers in a list"),
        ({"stop": "ab"}, "stop is 'ab'"),
        ({"stop": [1.0]}, "stop is 1.0"),
        ({"stop_texts": [5]}, r"stop_texts is \[5\]; expected texts in a list"),
        ({"logit_bias": {5.0: 1}}, "logit_bias is 5.0; expected a whole number"),
        ({"logit_bias": {True: 1}}, "logit_bias is True"),
        ({"logit_bias": {5: "1"}}, r"logit_bias\[5\] is '1'; expected a number"),
        ({"logit_bias": {5: float("inf")}}, r"logit_bias\[5\] is inf"),
        ({"logit_bias": [1]}, "expected numbers by id"),
    ],
)
def test_arguments_of_another_type_are_refused_by_name(model, options, problem):
    with pytest.raises(UsageError, match=problem):
        model.generate("x", **options)
    assert model.generate("x", max_new_tokens=1).text is not None


@pytest.mark.parametrize("prompt", [None, 5, 1.5, {"a": 1}, ["x"], np.array(5), bytearray(b"a")])
def test_what_is_no_prompt_is_refused(model, prompt):
    with pytest.raises(UsageError, match=r"prompt is .*; expected"):
        model.generate(prompt)


def test_one_text_is_not_taken_for_its_letters(model):
    with pytest.raises(UsageError, match="prompts is 'ab'; expected several in a list"):
        model.generate_all("ab")
    stopped = model.generate("The moon", stop_texts="END", max_new_tokens=2)
    assert stopped.proof.policy.stop_texts == (b"END",)


def test_numbers_of_numpy_are_numbers(model):
    options = {"max_new_tokens": 3, "temperature": 0.5, "seed": 7, "logit_bias": {5: -1.0}}
    of_numpy = {"max_new_tokens": np.int64(3), "temperature": np.float32(0.5)}
    of_numpy |= {"seed": np.uint32(7), "logit_bias": {np.int64(5): np.float64(-1)}}
    ids = np.array([3, 4, 5], np.int32)
    assert model.generate(ids, **of_numpy).proof == model.generate([3, 4, 5], **options).proof


def test_an_answer_shows_itself(model):
    answer = model.generate("{", max_new_tokens=3)
    assert repr(answer) == "<Answer '', 0 tokens, not ended>"
    assert str(answer) == answer.text
    assert repr(answer) == f"<Answer {answer.text!r}, 3 tokens, length>"
    assert model.seal.root.hex()[:16] in repr(model)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"root": "b254"}, "root is 'b254'; expected 32 bytes or 64 hexadecimal digits"),
        ({"root": 5}, "root is 5"),
        ({"trust": ""}, "trust is ''; expected paths in a list"),
        ({"trust": None}, "trust is None"),
        ({"threads": 2.0}, "threads is 2.0; expected a whole number"),
        ({"drafts": 2.5}, "drafts is 2.5"),
        ({"mesh": 5}, "mesh is 5"),
    ],
)
def test_a_model_is_opened_with_arguments_of_their_types(sealed, options, problem):
    with pytest.raises(UsageError, match=problem):
        runtime.open(sealed, **options)


def test_a_root_may_be_given_as_it_is_printed(seal, sealed):
    assert runtime.open(sealed, root=seal.root.hex()).seal.root == seal.root
    with pytest.raises(InputError, match="expected 00000000"):
        runtime.open(sealed, root="0" * 64)


def test_an_answer_that_only_waits_survives_anothers_interrupt(model):
    first, second = model.generate("{", max_new_tokens=3), model.generate("2", max_new_tokens=3)
    next(iter(first), None)
    wanted = model.generate_all(["2"], max_new_tokens=3)[0].report()
    assert interrupted(lambda: second.text, 60)
    assert not second.completion.lost
    assert second.report() == wanted


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


@pytest.mark.parametrize("path", ["none/out.s7p", "folder", "fifo", "model.s7l", "text"])
def test_a_proof_takes_nothing_elses_place_and_says_so_before_the_answer(
    sealed, tmp_path, here, path
):
    shutil.copy(sealed, tmp_path / "model.s7l")
    (tmp_path / "text").write_text("a note")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    before = {p.name: p.stat().st_ino for p in tmp_path.iterdir()}
    code, out, err = here("generate", "model.s7l", "--prompt", "x", "--proof", path)
    assert (code, out) == (2, "")
    assert "there is no folder none" in err if "/" in path else f"{path}: is there and no" in err
    assert {p.name: p.stat().st_ino for p in tmp_path.iterdir()} == before


def test_a_proof_takes_an_older_ones_place(sealed, tmp_path, here):
    for text in "x", "y":
        words = "--prompt", text, "--max-tokens", 1, "--proof", "out.s7p"
        assert here("generate", sealed, *words)[0] == 0
    assert load(tmp_path / "out.s7p").head["prompt"]["text"] == b"y"


def test_nothing_is_written_over_a_device(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputError, match="fifo: is there and no file; nothing was written"):
        write_bytes(tmp_path / "fifo", b"x")
    assert (tmp_path / "fifo").is_fifo()


def test_a_prompt_without_end_is_not_read_to_its_end(sealed, here):
    code, out, err = here("generate", sealed, "--file", "/dev/zero")
    assert (code, out) == (2, "")
    assert "a prompt of 4,194,305 bytes; expected at most 4,194,304" in err


@pytest.mark.parametrize("closed", ["0<&-", "2>&-"])
def test_closed_standard_streams(sealed, closed):
    line = f'exec "$@" {closed}'
    tool = [sys.executable, ROOT / "tools/generate.py", sealed]
    ask = ["--file", "-"] if "0" in closed else ["--prompt", "x", "--max-tokens", "1"]
    command = ["sh", "-c", line, "sh", *tool, *ask]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if "0" in closed:
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "standard input is closed" in done.stderr
    else:
        assert done.returncode == 0
        assert "tokens/s" not in done.stdout


@pytest.mark.parametrize(("content", "name"), [("proof", "a proof"), ("bundle", "a bundle")])
def test_another_form_in_a_models_place_is_named(seal, model, tmp_path, here, content, name):
    if content == "proof":
        model.generate("x", max_new_tokens=1).proof.save(tmp_path / "other")
    else:
        s7l.extract(seal, "expert0", tmp_path / "other")
    code, _, err = here("inspect", "other")
    assert code == 1
    assert f"this is {name}" in err
    if content == "bundle":
        code, _, err = here("verify", "other", "--run")
        assert code == 2
        assert "--run and --replay take the whole sealed model" in err


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
