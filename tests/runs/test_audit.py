"""Audits: an honest run passes on any mesh, a forged one is caught where its odds say."""

import dataclasses
import shutil
from contextlib import nullcontext
from pathlib import Path

import jax
import numpy as np
import pytest

from s7jax.commands import audit as command_audit
from s7jax.commands import dispute as command_dispute
from s7jax.errors import InputError, UsageError
from s7jax.runs import audit as audits
from s7jax.runs import dispute
from s7jax.s7l import note
from s7jax.s7l.note import new_key
from s7jax.terminal import cli
from s7jax.terminal.progress import Progress
from s7jax.train import checkpoint, trace, transcript
from s7jax.train import run as runs
from s7jax.train import step as steps
from s7jax.train.loop import Training
from s7jax.train.options import Every, Options
from s7jax.train.phase import Phase
from s7jax.train.run import batches, load_expert, load_trunk
from s7jax.train.step import Stepper
from tests.train.conftest import new_run, open_run, prepared  # noqa: F401 fixtures
from tests.train.training import train_expert, train_trunk

pytestmark = pytest.mark.usefixtures("compiled_alike")

AUDITABLE = Options(auditable=True, evaluate_every=Every(steps=10), log_to=())
SPOILT = 6  # the step of ten at which a forger does something


def audit(run, count=10, seed="drawn later", names=("trunk",)):
    return audits.audit(run, count, seed, names)


@pytest.fixture(scope="module")
def honest(tmp_path_factory, open_run):  # noqa: F811
    run = open_run(tmp_path_factory.mktemp("audit") / "honest")
    run = dataclasses.replace(run, options=AUDITABLE)
    train_trunk(run)
    train_expert(run, 1, load_trunk(run))
    return run


@pytest.fixture
def forger(new_run, monkeypatch):  # noqa: F811
    """A run to be trained by code that is changed with ``patch``, then audited without."""

    def trained(change) -> runs.Run:
        run = dataclasses.replace(new_run("forged"), options=AUDITABLE)
        with monkeypatch.context() as patch:
            change(patch)
            train_trunk(run)
        return run

    return trained


@pytest.mark.parametrize("shape", ["1x1", pytest.param("2x1", marks=pytest.mark.long(minutes=0.3))])
def test_an_honest_run_is_as_told_on_any_number_of_groups(honest, open_run, shape):  # noqa: F811
    run = open_run(honest.folder.path, on=shape)
    report = audits.report(run, 3, "drawn later", ["expert1", "trunk", "trunk"])
    assert (report["outcome"], report["phases"]) == ("as told", ["trunk", "expert1"])
    assert (len(report["segments"]), report["of"], report["steps"]) == (3, 15, 3)
    assert (report["of_steps"], report["mesh"]["data"]) == (15, int(shape[0]))
    assert 0.35 < report["caught"]["0.1"] < 0.4  # two of 15 segments: 1 − (13·12·11)/(15·14·13)
    assert report["sealed"] is None


def test_more_segments_than_there_are_are_all(honest):
    report = audit(honest, 11)
    assert (len(report["segments"]), report["caught"]["0.01"]) == (10, 1.0)


def test_the_seed_draws_and_nothing_else_does(honest):
    told = {"trunk": transcript.read(honest.folder.transcript("trunk"))}
    every, roots = audits.segments(honest, told), [told["trunk"].root.hex()]
    drawn = {seed: audits.draw(every, 3, seed, roots) for seed in map(str, range(200))}
    counts = np.bincount([s.first for picks in drawn.values() for s in picks], minlength=10)
    assert counts.min() > 30
    assert audits.draw(every, 3, "7", roots) == drawn["7"]
    assert audits.draw(every, 3, "7", ["0"]) != drawn["7"]


@pytest.fixture(scope="module")
def spoilt(honest):
    """The batch of the step."""
    return batches(honest.prepared, Phase(honest.config)).batch(SPOILT).tokens


def step_with(change, batch):
    """A patch of the training step: ``change(self, tokens, rate)`` before that of the batch."""

    def patched(patch):
        right = Stepper.step

        def step(self, tokens, rate, apply=True, keep_gradient=False):
            if np.array_equal(tokens, batch):
                tokens, rate, apply = change(self, tokens, rate)
            return right(self, tokens, rate, apply, keep_gradient)

        patch.setattr(Stepper, "step", step)

    return patched


def other_weights(stepper, tokens, rate):
    state = stepper._states[0]
    twice = jax.tree.map(lambda x: x + x, state.params["embedding"])
    stepper._states[0] = state._replace(params={**state.params, "embedding": twice})
    return tokens, rate, True


FORGERIES = {
    "weights swapped": other_weights,
    "another batch": lambda _, tokens, rate: (tokens[::-1] * 0 + tokens[0], rate, True),
    "learning rate nudged": lambda _, tokens, rate: (tokens, rate * 1.001, True),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_step_is_found_and_named(forger, spoilt, name):
    run = forger(step_with(FORGERIES[name], spoilt))
    told = {"trunk": transcript.read(run.folder.transcript("trunk"))}
    every, roots = audits.segments(run, told), [told["trunk"].root.hex()]
    seeds: dict[bool, list[str]] = {True: [], False: []}
    for seed in map(str, range(400)):
        hit = SPOILT in {segment.first for segment in audits.draw(every, 3, seed, roots)}
        seeds[hit].append(seed)
    assert 0.2 < len(seeds[True]) / 400 < 0.4  # three of ten segments
    with pytest.raises(InputError, match=rf"trunk: step {SPOILT}: "):
        audit(run, 3, seeds[True][0])
    assert audit(run, 3, seeds[False][0])  # what was made of it afterwards is as it is told


def settled(run, a, b):
    return dispute.settle(run, dispute.Side(Path("a.s7t"), a), dispute.Side(Path("b.s7t"), b))


@pytest.mark.parametrize(
    ("name", "what"),
    [("weights swapped", "loss"), ("another batch", "loss"), ("learning rate nudged", "state")],
)
def test_a_dispute_ends_at_the_forged_step_with_who_is_right(honest, forger, spoilt, name, what):
    ours = transcript.read(honest.folder.transcript("trunk"))
    run = forger(step_with(FORGERIES[name], spoilt))
    theirs = transcript.read(run.folder.transcript("trunk"))
    for pair, right in (((theirs, ours), "b"), ((ours, theirs), "a")):
        verdict = settled(honest, *pair)
        found = verdict.difference
        assert (found.done, found.what, verdict.right) == (SPOILT, what, right)
        assert verdict.value == found.values["ab".index(right)] != found.values["ba".index(right)]


def faulty(rows):
    """A machine that computes one tensor of the gradient of one microbatch wrong, every time."""

    def patched(patch):
        right = steps.gradient_program

        def gradient_program(*args):
            program = right(*args)

            def gradient(params, frozen, tokens):
                loss, found = program(params, frozen, tokens)
                if np.array_equal(tokens, rows):
                    right_one = found["trunk"]["final_norm"]["gain"]
                    found["trunk"]["final_norm"]["gain"] = right_one + right_one
                return loss, found

            gradient.lower = program.lower
            return gradient

        patch.setattr(steps, "gradient_program", gradient_program)

    return patched


def traced(run, a, b, path):
    mine = transcript.read(run.folder.transcript("trunk"))
    dispute.trace_of(run, a, b, mine).write(path)
    return path


def test_traces_lead_to_the_microbatch_and_the_tensor(
    honest, forger, spoilt, tmp_path, monkeypatch
):
    rows = spoilt[5:6]
    run = forger(faulty(rows))
    ours, theirs = (transcript.read(x.folder.transcript("trunk")) for x in (honest, run))
    assert dispute.first_difference(ours, theirs).what == "grad_norm"
    mine = traced(honest, ours, theirs, tmp_path / "a.s7x")
    with monkeypatch.context() as patch:
        faulty(rows)(patch)
        other = traced(run, ours, theirs, tmp_path / "b.s7x")
    a, b = dispute.Side(Path("a.s7t"), ours, mine), dispute.Side(Path("b.s7t"), theirs, other)
    for pair, right in (((a, b), "a"), ((b, a), "b")):
        verdict = dispute.settle(honest, *pair)
        found = verdict.difference
        assert (found.done, verdict.right) == (SPOILT, right)
        assert found.what == "microbatch 5: gradient/trunk/final_norm/gain"
        assert verdict.value == found.values["ab".index(right)] != found.values["ba".index(right)]
    with pytest.raises(InputError, match=r"a\.s7x: not a trace of step 6 as b\.s7t tells of it"):
        dispute.settle(honest, a, dataclasses.replace(b, trace_path=mine))
    with pytest.raises(InputError, match="not a trace of step 6 as"):
        traced(run, ours, theirs, tmp_path / "c.s7x")  # the fault is mended, the transcript is not


def test_who_copies_a_trace_is_judged_by_the_step(honest, tmp_path):
    ours = transcript.read(honest.folder.transcript("trunk"))
    nudged = [*ours.steps]
    nudged[SPOILT] = dataclasses.replace(nudged[SPOILT], grad_norm=bytes(4))
    theirs = dataclasses.replace(ours, steps=tuple(nudged))
    mine = traced(honest, ours, theirs, tmp_path / "a.s7x")
    copied, more = tmp_path / "b.s7x", tmp_path / "c.s7x"
    copy = dataclasses.replace(trace.read(mine), told=nudged[SPOILT])
    copy.write(copied)
    parts = {**copy.parts}
    ends = {name: parts.pop(name) for name in ("gradient", "after")}
    dataclasses.replace(copy, parts={**parts, "microbatch 8": {"loss": bytes(32)}, **ends}).write(
        more
    )
    a = dispute.Side(Path("a.s7t"), ours, mine)
    for path, what in ((copied, "grad_norm"), (more, "microbatch 8: loss")):
        verdict = dispute.settle(honest, a, dispute.Side(Path("b.s7t"), theirs, path))
        assert (verdict.right, verdict.difference.what) == ("a", what)


def test_where_gradients_agree_the_update_is_named(honest, forger, spoilt, tmp_path, monkeypatch):
    nudged = step_with(FORGERIES["learning rate nudged"], spoilt)
    run = forger(nudged)
    ours, theirs = (transcript.read(x.folder.transcript("trunk")) for x in (honest, run))
    path = traced(honest, ours, theirs, tmp_path / "a.s7x")
    with monkeypatch.context() as patch:
        nudged(patch)
        mine, other = trace.read(path), trace.read(traced(run, ours, theirs, tmp_path / "b.s7x"))
    assert mine.difference(other) == ("after", "params/embedding/weight")
    assert mine.difference(mine) is None
    for damaged in (b"", b"x", path.read_bytes()[:-1], path.read_bytes() + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.s7x: not a trace of version 1"):
            trace.read(path)


def test_other_data_annealed_back_is_caught_in_its_segments_and_only_there(forger):
    """Four of ten segments were trained on one easy sequence, then honestly to a fair loss."""
    others = range(3, 7)

    def easy(patch):
        right, at = Stepper.step, [0]

        def step(self, tokens, *args):
            tokens = tokens * 0 + tokens[0] if at[0] in others else tokens
            at[0] += 1
            return right(self, tokens, *args)

        patch.setattr(Stepper, "step", step)

    run = forger(easy)
    told = transcript.read(run.folder.transcript("trunk"))
    every = audits.segments(run, {"trunk": told})
    with Progress("segments", len(every), "segments") as progress:
        for segment in every:
            forged = pytest.raises(InputError, match=f"trunk: step {segment.first}: loss is ")
            with forged if segment.first in others else nullcontext():
                audits.train_again(run, segment, told, progress)
    roots = [told.root.hex()]
    hits = sum(
        any(segment.first in others for segment in audits.draw(every, 3, seed, roots))
        for seed in map(str, range(1000))
    )
    assert abs(hits / 1000 - audits.odds(10, 3, 0.4)) < 0.04  # 5/6; three standard deviations


def test_where_there_is_no_dispute_it_is_said(honest, open_run):  # noqa: F811
    trunk, expert = (
        transcript.read(honest.folder.transcript(name)) for name in ("trunk", "expert1")
    )
    with pytest.raises(InputError, match="agree in every step"):
        settled(honest, trunk, trunk)
    with pytest.raises(InputError, match="not transcripts of one training: "):
        settled(honest, trunk, expert)
    both_wrong = dataclasses.replace(trunk, steps=(trunk.steps[1], *trunk.steps[1:]))
    other = dataclasses.replace(trunk, steps=(trunk.steps[2], *trunk.steps[1:]))
    verdict = settled(honest, both_wrong, other)
    assert (verdict.right, verdict.value) == ("neither", trunk.steps[0].receipt.hex())


def test_parameters_swapped_after_the_last_step_are_found(forger):
    """Every step is honest, and told so; what is saved and sealed is something else."""

    def swapped(patch):
        right = Training.finish

        def finish(self):
            other_weights(self._stepper, None, None)
            return right(self)

        patch.setattr(Training, "finish", finish)

    with pytest.raises(InputError, match="trunk: step 9: end is "):
        audit(forger(swapped))


def test_a_step_that_was_left_out_is_found(forger, spoilt):
    def silently(patch):
        step_with(lambda _, tokens, rate: (tokens, rate, False), spoilt)(patch)
        told = transcript.Recorder._write

        def lying(self, entry):
            told(self, [*entry[:-1], False] if entry[0] == "step" else entry)

        patch.setattr(transcript.Recorder, "_write", lying)

    with pytest.raises(InputError, match=f"step {SPOILT}: state is "):
        audit(forger(silently))


def test_rows_that_were_not_due_are_found_before_anything_is_trained(forger):
    def easy(patch):
        right = runs.TrainingBatches.batch
        patch.setattr(
            runs.TrainingBatches, "batch", lambda self, i: right(self, 0 if i == SPOILT else i)
        )

    with pytest.raises(InputError, match=f"step {SPOILT} was fed other sequences than are due"):
        audit(forger(easy), 1)


def test_another_share_is_another_run(honest, forger, open_run, tiny):  # noqa: F811
    code, *others = tiny.domains
    shifted = dataclasses.replace(
        tiny, domains=(dataclasses.replace(code, share=code.share + 1), *others)
    )
    run = open_run(honest.folder.path.parent / "shifted", shifted)
    train_trunk(dataclasses.replace(run, options=AUDITABLE))
    theirs, ours = run.folder.transcript("trunk"), honest.folder.transcript("trunk")
    kept = ours.read_bytes()
    try:
        shutil.copy(theirs, ours)
        with pytest.raises(InputError, match=r"inputs\.config_sha256 is "):
            audit(honest)
    finally:
        ours.write_bytes(kept)


def test_a_checkpoint_of_another_run_is_found(honest, new_run, tiny):  # noqa: F811
    other = dataclasses.replace(
        new_run("other", dataclasses.replace(tiny, seed=1)), options=AUDITABLE
    )
    train_trunk(other)
    run = dataclasses.replace(new_run("spoilt"), options=AUDITABLE)
    shutil.rmtree(run.folder.path)
    shutil.copytree(honest.folder.path, run.folder.path)
    swapped = run.folder.checkpoints / "trunk/5"
    shutil.rmtree(swapped)
    shutil.copytree(other.folder.checkpoints / "trunk/5", swapped)
    with pytest.raises(InputError, match="after 5 steps the checkpoint has SHA-256"):
        audit(run)


def test_parameters_that_are_not_those_of_their_record_are_found(honest, new_run):  # noqa: F811
    run = new_run("expert")
    shutil.rmtree(run.folder.path)
    shutil.copytree(honest.folder.path, run.folder.path)
    final = run.folder.final("expert1")
    twice = jax.tree.map(lambda x: x + x, load_expert(honest, 1))
    checkpoint.save_final(run.folder.path / "twice", twice, {})
    shutil.rmtree(final / "params")
    shutil.copytree(run.folder.path / "twice/params", final / "params")
    with pytest.raises(InputError, match=r"expert1_final: parameters have SHA-256"):
        audit(run, names=("expert1",))


def test_a_receipt_forged_with_its_chain_contradicts_what_was_sealed(honest, new_run):  # noqa: F811
    run = dataclasses.replace(new_run("rewritten"), options=AUDITABLE)
    shutil.rmtree(run.folder.path)
    shutil.copytree(honest.folder.path, run.folder.path)
    path = run.folder.transcript("trunk")
    receipt = transcript.read(path).steps[3].receipt
    path.write_bytes(path.read_bytes().replace(receipt, bytes(32)))
    with pytest.raises(InputError, match=r"root .* says"):
        audit(run)


def test_what_may_differ_without_a_forger_is_said(honest):
    told = {"trunk": transcript.read(honest.folder.transcript("trunk"))}
    assert list(audits.environments(honest, told)) == []
    psum = dataclasses.replace(honest.config, reduction="psum")
    (line,) = audits.environments(dataclasses.replace(honest, config=psum), told)
    assert line == "with reduction 'psum' bits depend on the number of data groups"
    other = {0: {**told["trunk"].environments[0], "device": "\x1b[2J"}}
    told["trunk"] = dataclasses.replace(told["trunk"], environments=other)
    (line,) = audits.environments(honest, told)
    assert line == "trunk was trained with device '\\x1b[2J'; here it is 'cpu'"


def command(module, *words: str) -> None:
    parser = cli.parser("", "")
    module.add_flags(parser)
    module.main(parser.parse_args(words))


def test_what_cannot_be_written_or_is_not_there_is_said_before_anything_is_done(honest, tmp_path):
    new_key(tmp_path / "key.pem")
    sign, there = ("--sign", str(tmp_path / "key.pem")), str(tmp_path / "there")
    Path(there).touch()
    told = str(honest.folder.transcript("trunk"))
    disputing = (command_dispute, told, told, str(honest.folder.path), "--write-trace")
    for words, problem in (
        ((command_audit, "runs/x", "--run", "y"), "runs/x, --run y: give one of them"),
        ((command_audit, *sign, "--report", there), "--report .*there: exists"),
        ((command_audit, *sign, "--report", f"{there}/none/x.s7a"), "there is no folder"),
        ((*disputing, there), "--write-trace .*there: exists"),
        ((*disputing, "x.s7x", "--traces", there, there), "give one of them"),
        ((command_dispute, "a.s7p", "b.s7p", "x", "--mesh", "1x1"), "--mesh: of transcripts"),
    ):
        with pytest.raises(UsageError, match=problem):
            command(*words)
    with pytest.raises(UsageError, match="--phase exprt1: expected of trunk, expert0, "):
        audits.report(honest, 1, "", ["exprt1"])


@pytest.mark.parametrize(
    "text",
    [
        "s7 audit\nnot JSON\n",
        "s7 audit\n[]\n",
        f"s7 audit\n{'[' * 20_000}\n",
        's7 audit\n{"format":"s7-audit","outcome":"as told","version":2}\n',
        's7 audit\n{"format":"s7-audit","outcome":"as told","version":1}\n',
        's7 audit\n{"format":"s7-audit","outcome":1,"version":1}\n',
        's7l model\n{"format":"s7-audit","outcome":"not","version":1}\n',
    ],
)
def test_what_is_no_report_is_refused_whoever_signed_it(tmp_path, text):
    public, path = new_key(tmp_path / "key.pem"), tmp_path / "x.s7a"
    note.sign(path, text, [tmp_path / "key.pem"])
    with pytest.raises(InputError, match=r"x\.s7a: not the report of an audit, version 1"):
        audits.signed(path, [public])


def test_what_a_report_says_moves_no_cursor(tmp_path):
    public, path = new_key(tmp_path / "key.pem"), tmp_path / "x.s7a"
    found = {"format": "s7-audit", "version": 1, "outcome": "\x1b[2Jas told"}
    audits.sign(found, path, [tmp_path / "key.pem"])
    with pytest.raises(InputError, match=r"not as told: \\u001b\[2Jas told"):
        command(command_audit, "--read", str(path), "--trust", str(public))


def test_a_run_that_has_not_ended_or_has_no_transcript_is_refused(honest, new_run):  # noqa: F811
    run = new_run("none")
    shutil.copytree(honest.folder.final("trunk"), run.folder.final("trunk"))
    with pytest.raises(InputError, match=r"trunk\.s7t: .*No such file"):
        audit(run)
    with pytest.raises(InputError, match="expert2_final is not there: expert2 has not ended"):
        audit(honest, names=("expert2",))
