"""Proofs: stored, parsed, replayed; whatever was changed is located."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s7jax.errors import InputError, UsageError
from s7jax.integer.sampling import ONE, Sampling
from s7jax.mesh import parse as mesh_of
from s7jax.mesh import pools
from s7jax.runtime import Compute, Engine, Request, answers
from s7jax.runtime.model import Model, by_devices
from s7jax.runtime.policy import Policy
from s7jax.runtime.prompt import Prompt, of_ids, of_text
from s7jax.runtime.proof import Growing, Step, begin, load, parse, trace_root
from s7jax.runtime.replay import by_specification, replay, traced
from s7jax.s7l import SealError
from s7jax.s7l.canonical import decode, encode
from s7jax.terminal.tables import show_replay

PROMPT = Prompt((0, 72, 101, 3, 9))
POLICY = Policy(max_new_tokens=6, sampling=Sampling(temperature_q16=ONE, seed=9))


@pytest.fixture(scope="module")
def model(seal):
    return Model(seal)


def ask(compute, prompt, policy):
    engine = Engine(compute)
    found = engine.submit(Request(prompt, policy))
    engine.run()
    return found.proof


@pytest.fixture(scope="module")
def proof(model):
    return ask(model.compute, of_ids(model.tokenizer, PROMPT.ids), POLICY)


@pytest.fixture(scope="module")
def forward(seal):
    return by_specification(seal)


def test_stored_and_read_again(proof, tmp_path):
    proof.save(tmp_path / "out.s7p")
    assert load(tmp_path / "out.s7p") == proof
    assert not list(tmp_path.glob(".*"))


def test_replayed_in_numpy_and_on_devices(proof, seal, forward, model):
    replay(proof, seal, forward)
    replay(proof, seal, by_devices(model))


def test_what_it_shows_is_readable(seal, forward, model):
    text = "caf\xe9\n\x1b[31m"
    found = model.generate(text, max_new_tokens=3, stop=[], stop_texts=["\0\0"]).proof
    shown = replay(found, seal, forward)
    assert shown["prompt"]["text"] == text
    assert shown["prompt"]["document_start"]
    assert shown["policy"]["max_new_tokens"] == 3
    assert shown["policy"]["stop_texts"] == ["\0\0"]
    assert shown["answer"].encode("utf-8", "surrogateescape") == found.answer
    assert sum(part["tokens"] for part in shown["experts"]) == 3


def test_no_two_proofs_look_alike(seal, forward, model, capsys):
    """Bytes that are no UTF-8 are not the text of their escapes; quotes do not end early."""
    looks = set()
    for text in (
        b"\xff",
        b"\\xff",
        b"\x7f",
        b"\\x7f",
        b'a" (1 tokens)',
        "\udcff".encode("utf-8", "surrogatepass"),
    ):
        replayed = replay(
            model.generate(text, max_new_tokens=1, stop_texts=[text]).proof, seal, forward
        )
        show_replay(replayed | {"chain": "", "answer": ""})
        looks.add(capsys.readouterr().out)
        assert replayed["prompt"]["text"].encode("utf-8", "surrogateescape") == text
    assert len(looks) == 6
    show_replay(
        replayed
        | {
            "model": "x\n  end      stop\x1b[2J",
            "policy": replayed["policy"] | {"temperature": 1.0, "seed": 4_294_967_295},
        }
    )
    shown = capsys.readouterr().out
    assert "x\\n  end" in shown
    assert "\x1b" not in shown
    assert "seed 4294967295" in shown


def test_a_prompt_that_is_written_can_be_read(model):
    """One limit for both, below what the splitter of text gives up at."""
    with pytest.raises(UsageError, match="a prompt of 4,194,305 bytes"):
        model.prompt(b" " * (1 << 22) + b"a")
    with pytest.raises(UsageError, match="surrogate"):
        model.generate("\ud800")
    with pytest.raises(UsageError, match="surrogate"):
        model.generate("x", stop_texts=["\ud800"])
    with pytest.raises(UsageError, match="stop is True; expected a whole number"):
        model.generate("x", stop=[True])


@pytest.mark.parametrize("temperature", [1e-6, -1e-6])
def test_a_temperature_is_not_greedy_without_a_word(model, temperature):
    with pytest.raises(UsageError, match=r"expected (0 or at least 1/64|a number from 0 to 256)"):
        model.generate("x", temperature=temperature)


def test_ids_that_are_a_text_are_described_by_it(model):
    told = of_text(model.tokenizer, "def f(x):")
    assert of_ids(model.tokenizer, told.ids) == told
    assert of_ids(model.tokenizer, told.ids[1:]) == of_text(
        model.tokenizer, "def f(x):", start=False
    )
    assert of_ids(model.tokenizer, (*told.ids, 0)).text is None
    assert of_text(model.tokenizer, "caf\udcff") == of_text(model.tokenizer, b"caf\xff")


@pytest.mark.parametrize(
    "same",
    [
        Policy(max_new_tokens=5),
        Policy(max_new_tokens=5, sampling=Sampling(seed=3, top_k=4, top_p_q16=9)),
        Policy(max_new_tokens=5, sampling=Sampling(temperature_q16=ONE, top_k=1, seed=2)),
        Policy(max_new_tokens=5, stop_texts=(b"zqz", b"zqzz", b"zqz")),
    ],
)
def test_policies_that_do_the_same_have_one_description(model, same):
    plain = ask(model.compute, PROMPT, Policy(max_new_tokens=5))
    wanted = plain.head["policy"] | ({"stop_texts": [b"zqz"]} if same.stop_texts else {})
    found = ask(model.compute, PROMPT, same)
    assert found.head["policy"] == wanted
    assert found.output == plain.output


def test_a_stop_text_ends_the_answer_and_is_cut_off(seal, forward, model):
    plain = model.generate("def f", max_new_tokens=12, stop=[])
    whole = plain.proof.answer
    stop = whole[3:5]
    found = model.generate("def f", max_new_tokens=12, stop=[], stop_texts=[stop])
    assert found.proof.answer == whole[: whole.index(stop)]
    assert found.text == found.proof.answer.decode(errors="replace")
    assert found.proof.end == "stop"
    replay(found.proof, seal, forward)


def test_more_tokens_than_there_is_room_for_is_no_limit(seal, forward, model):
    found = model.generate("x", max_new_tokens=60_000, stop=[])
    assert found.proof.end == "context"
    assert found.proof.head["policy"]["max_new_tokens"] is None
    replay(found.proof, seal, forward)


def test_with_a_trace(proof, seal, forward, model):
    told = traced(proof, seal)
    again = parse(decode(encode(told.tree()), "proof"))
    assert again == told
    replay(told, seal, forward)
    lied = [list(digests) for digests in told.operators]
    lied[2][4] = bytes(32)
    tree = told.tree() | {"operators": lied}
    with pytest.raises(SealError, match=r"operators\[2\]"):
        parse(tree)
    for changed, named in (
        (lied[1][:-1], "step 1: 26 operators; expected 27"),
        (lied[2], "step 2: the output of trunk.layer0.attn.v"),
    ):
        at = int(named[5])
        growing = begin(seal, proof.prompt(model.tokenizer), proof.policy, trace=True)
        for i, step in enumerate(told.steps):
            root = trace_root(changed) if i == at else step.trace
            growing.extend(dataclasses.replace(step, trace=root))
        digests = [changed if i == at else own for i, own in enumerate(told.operators)]
        with pytest.raises(InputError, match=named):
            replay(growing.close(told.answer, told.end, digests), seal, forward)


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_any_flipped_bit_of_the_file_is_refused(proof, tmp_path_factory, at, bit):
    data = bytearray(encode(proof.tree()))
    data[at % len(data)] ^= 1 << bit
    path = tmp_path_factory.mktemp("flip") / "out.s7p"
    path.write_bytes(data)
    with pytest.raises(InputError):
        load(path)


@pytest.mark.parametrize("tree", [None, [], {}, {"format": "s7-proof"}, {"steps": [[1] * 6]}])
def test_what_is_no_proof_is_refused(tree):
    with pytest.raises(SealError):
        parse(tree)


def test_version_1_is_reported_as_what_it_is():
    with pytest.raises(SealError, match="version 1 shows that its steps form one chain"):
        parse({"format": "s7-proof", "version": 1})


def long_proof(proof, count):
    growing = Growing(proof.head)
    for i in range(count):
        growing.extend(Step(4 + i, 9, 0, bytes(32), bytes(32), 9))
    return growing.close(b"", "client")


def test_parsing_takes_work_in_proportion_to_the_steps(proof):
    """Counted in hash calls, not in seconds."""
    calls = []
    from s7jax.s7l import merkle

    plain = merkle.leaf
    for count in (500, 1_000):
        tree = long_proof(proof, count).tree()
        seen = []
        merkle.leaf = lambda tag, data, seen=seen: (seen.append(len(data)), plain(tag, data))[1]
        try:
            parse(tree)
        finally:
            merkle.leaf = plain
        calls.append(sum(seen))
    assert calls[1] < 2.1 * calls[0]


@pytest.mark.usefixtures("quick_compiling")
def test_a_changed_weight_or_router_logit_is_located_to_its_step(proof, seal):
    """In memory, without the seal's knowledge: the replay of what it answers names the step."""
    compute = Compute(seal, pools(mesh_of("1x1")))
    program, forward = compute._program, by_specification(seal)
    asked = of_ids(Model(seal).tokenizer, PROMPT.ids)

    router = program.shared["router"]["bias"]
    program.shared["router"]["bias"] = router._replace(m=router.m + np.int32(1 << 28))
    with pytest.raises(InputError, match=r"step 0 \(position 4\): router is"):
        replay(ask(compute, asked, POLICY), seal, forward)
    program.shared["router"]["bias"] = router

    weight = program.shared["embedding"]["weight"]
    token = proof.output[2]  # first read as an input at step 3; its logit changes at every step
    row = np.asarray(weight).copy()
    row[token, 0] ^= 1
    program.shared["embedding"]["weight"] = jax.device_put(row, weight.sharding)
    with pytest.raises(InputError, match=r"step 0 \(position 4\): logits is"):
        replay(ask(compute, asked, POLICY), seal, forward)
    program.shared["embedding"]["weight"] = weight
    replay(ask(compute, asked, POLICY), seal, forward)


def test_known_answers_are_given_again(seal, forward, model):
    known = seal.stream["answers"]
    assert [answer["domain"] for answer in known] == ["code", "math", "reason", "general"]
    answers.check(known, forward)
    answers.check(known, by_devices(model))


@pytest.mark.parametrize("index", [0, 2])
def test_a_changed_known_answer_is_named(seal, forward, index):
    known = [dict(answer) for answer in seal.stream["answers"]]
    logits = list(known[index]["logits"])
    logits[1] = bytes(32)
    known[index]["logits"] = logits
    with pytest.raises(InputError, match=f"{known[index]['domain']}, step 1: other logits"):
        answers.check(known, forward)


def test_what_a_proof_binds_cannot_be_changed(seal):
    before = seal.manifest.hashes()
    for change in (
        lambda: seal.stream["defaults"].update(seed=3),
        lambda: seal.stream["defaults"].__setitem__("seed", 3),
        lambda: seal.stream["answers"].append({}),
        lambda: seal.vocabulary.specials.update(x=40),
        lambda: seal.manifest.components.pop("expert1"),
    ):
        with pytest.raises((AttributeError, TypeError)):
            change()
    assert seal.manifest.hashes() == before


def test_a_bias_is_bound_and_replayed(seal, forward, model):
    plain = model.generate("def f", max_new_tokens=4, stop=[])
    first = plain.proof.output[0]
    found = model.generate("def f", max_new_tokens=4, stop=[], logit_bias={first: -100, 9: 0})
    assert found.proof.output[0] != first
    assert found.proof.head["policy"]["logit_bias"] == [[first, -100 * ONE]]
    shown = replay(parse(decode(encode(found.proof.tree()), "proof")), seal, forward)
    assert shown["policy"]["logit_bias"] == {first: -100.0}
    assert "logit_bias" not in plain.proof.head["policy"]
