"""The page, in a real browser."""

import browser
import pytest
from served import Server, wait_until

from s7jax.runtime.model import Model

pytestmark = [
    pytest.mark.long(minutes=1),
    pytest.mark.skipif(browser.found() is None, reason="no Chromium here"),
]
PROMPT = "def f(x):"


@pytest.fixture(scope="module")
def page(sealed, tmp_path_factory):
    profile = tmp_path_factory.mktemp("profile")
    with Server(sealed, "--name", "tiny") as server, browser.page(profile) as found:
        found.open(server.url)
        loaded = "typeof model !== 'undefined' && model && document.title === model.id"
        wait_until(lambda: found.run(loaded))
        yield found


def ask(page, text, tokens):
    page.run(
        f"$('text').value = {text!r}; $('tokens').value = {tokens}; $('form').requestSubmit(); 0"
    )
    wait_until(lambda: page.run("!$('go').disabled"))


def test_an_answer_streams_with_its_route_and_its_proof_holds(page, sealed):
    from s7jax import s7l

    seal = s7l.open(sealed)
    answer = Model(seal).generate(PROMPT, max_new_tokens=20)
    ask(page, PROMPT, 20)
    verdict = page.run("$('verdict').textContent")
    assert "the proof's chain holds" in verdict
    assert page.run("$('answer').textContent") == PROMPT + answer.text
    kinds = page.run("[...document.querySelectorAll('.token')].map(t => t.className)")
    experts = [step.expert for step in answer.proof.steps]
    assert kinds == [f"token e{e}" for e in experts]
    title = page.run("document.querySelector('.token').title")
    assert title.startswith(seal.manifest.dimensions.domains[experts[0]] + "\nln p = -")
    assert seal.root.hex() in page.run("$('seal').textContent")
    assert page.run("$('legend').textContent") == "codemathreasongeneral"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("at.fill(7, at.length - 40, at.length - 36)", "chain"),
        ("root = '0'.repeat(64)", "root"),
        ("text += '!'", "answer"),
        ("prompt += '!'", "prompt"),
    ],
)
def test_a_proof_of_something_else_is_refused(page, change, named):
    script = f"""(async () => {{
      const answer = await (await fetch('v1/completions', {{method: 'POST', headers: headers(),
        body: JSON.stringify({{prompt: 'a', max_tokens: 3}})}})).json();
      let at = Uint8Array.from(atob(answer.s7.proofs[0]), c => c.charCodeAt(0));
      let root = model.root, prompt = 'a', text = answer.choices[0].text;
      await verify(at, root, prompt, text);
      {change};
      try {{ await verify(at, root, prompt, text); return 'accepted'; }}
      catch (error) {{ return error.message; }}
    }})()"""
    assert named in page.run(script)


def test_what_is_wrong_is_said(page):
    ask(page, "a" * 2_000, 5)
    assert "too long for a context" in page.run("$('verdict').textContent")
