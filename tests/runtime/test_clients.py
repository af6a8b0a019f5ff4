"""What others wrote, asking this server: lm-eval, schemathesis, OpenAI for Node, LangChain."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from served import HANGS, Server

from s7jax.runtime.model import Model
from s7jax.runtime.replay import by_specification

pytestmark = pytest.mark.long(minutes=2)
COMMANDS = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
LM_EVAL, SCHEMATHESIS = (shutil.which(c, path=COMMANDS) for c in ("lm_eval", "schemathesis"))


@pytest.fixture(scope="module")
def url(sealed):
    with Server(sealed, "--name", "tiny", "--waiting", "60") as server:
        yield server.url


def run(command, **keywords):
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=HANGS, **keywords
    )
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-3_000:]
    return done.stdout


def task(folder, name, rows, **settings):
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        **settings,
    }
    (folder / f"{name}.yaml").write_text(json.dumps(tree))  # JSON is YAML


@pytest.mark.skipif(LM_EVAL is None, reason="no lm_eval here")
def test_lm_eval_finds_what_the_logits_say(url, seal, tmp_path):
    """Choices, whole documents and generated text: each number is recomputed in float64."""
    texts = ["def f(x): return x", "2 + 2 = 4", "It was a dark night"]
    questions = [{"q": text[:-4], "a": [text[-4:], " xyz"], "gold": 0} for text in texts]
    task(
        tmp_path, "choices", questions, output_type="multiple_choice",
        doc_to_text="{{q}}", doc_to_choice="{{a}}", doc_to_target="{{gold}}",
        target_delimiter="", metric_list=[{"metric": "acc"}],
    )  # fmt: skip
    task(
        tmp_path, "documents", [{"t": text} for text in texts],
        output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{t}}",
        metric_list=[{"metric": "byte_perplexity"}],
    )  # fmt: skip
    task(
        tmp_path, "texts", questions, output_type="generate_until", doc_to_text="{{q}}",
        doc_to_target="{{a[0]}}", metric_list=[{"metric": "exact_match"}],
        generation_kwargs={"until": ["zzzz"], "max_gen_toks": 6, "temperature": 0},
    )  # fmt: skip
    arguments = f"model=tiny,base_url={url}/v1/completions,tokenizer_backend=remote,max_length=64"
    command = [LM_EVAL, "run", "--model", "local-completions", "--model_args", arguments]
    command += ["--tasks", "choices", "documents", "texts", "--include_path", str(tmp_path)]
    command += ["--output_path", str(tmp_path / "out"), "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    run(command, env=os.environ | offline)

    def samples(name):
        (path,) = (tmp_path / "out").rglob(f"samples_{name}_*.jsonl")
        found = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(found) == len(texts)
        return found

    model = Model(seal)

    def logprob(text, continuation):
        before, after = (list(model.prompt(t, start=False).ids) for t in (text, continuation))
        ids = np.array([0, *before, *after], np.int32)
        _, _, logits = by_specification(seal)(ids[:-1], len(before))
        x = logits / 2.0**16
        x -= x.max(1, keepdims=True)
        x -= np.log(np.exp(x).sum(1, keepdims=True))
        return x[range(len(after)), after].sum()

    for sample in samples("choices"):
        doc = sample["doc"]
        for answer, (found, _) in zip(doc["a"], sample["filtered_resps"], strict=True):
            assert float(found) == pytest.approx(logprob(doc["q"], answer), abs=2e-3)
    for sample in samples("documents"):
        found = sample["filtered_resps"][0]
        found = found[0] if isinstance(found, list) else found
        assert float(found) == pytest.approx(logprob("", sample["doc"]["t"]), abs=2e-3)
    for sample in samples("texts"):
        wanted = model.generate(sample["doc"]["q"], max_new_tokens=6, stop_texts=["zzzz"]).text
        assert sample["resps"][0][0] == wanted


@pytest.mark.skipif(SCHEMATHESIS is None, reason="no schemathesis here")
def test_nothing_that_its_page_allows_breaks_it(url):
    """Requests made from /openapi.json, right and wrong: never a status of 500 or more."""
    command = [SCHEMATHESIS, "run", f"{url}/openapi.json", "--checks", "not_a_server_error"]
    run([*command, "--max-examples", "200", "--seed", "1"])


NODE = """
const { OpenAI } = require("openai");
const client = new OpenAI({ baseURL: process.argv[1] + "/v1", apiKey: "none", maxRetries: 0 });
(async () => {
  const asked = { model: "tiny", prompt: "def f", max_tokens: 8, logprobs: 1 };
  const whole = await client.completions.create(asked);
  let text = "";
  for await (const chunk of await client.completions.create({ ...asked, stream: true }))
    text += chunk.choices[0].text;
  const models = (await client.models.list()).data.map(model => model.id);
  let refused;
  try { await client.completions.create({ ...asked, suffix: "x" }); }
  catch (error) { refused = [error.status, error.param]; }
  console.log(JSON.stringify({ text, whole: whole.choices[0].text, models, refused }));
})();
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """The environment of a Node that has OpenAI's client: its own, or npm's newest."""
    if shutil.which("node") is None:
        pytest.skip("no Node here")
    if subprocess.call(["node", "-e", "require('openai')"], stderr=subprocess.DEVNULL) == 0:
        return dict(os.environ)
    folder = tmp_path_factory.mktemp("node")
    install = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), "openai"]
    if shutil.which("npm") is None or subprocess.call(install, timeout=HANGS):
        pytest.skip("no OpenAI client for Node here (NODE_PATH), and npm cannot install it")
    return os.environ | {"NODE_PATH": str(folder / "node_modules")}


def test_openais_client_for_node(node, url, seal):
    found = json.loads(run(["node", "-e", NODE, url], env=node))
    wanted = Model(seal).generate("def f", max_new_tokens=8).text
    assert found["text"] == found["whole"] == wanted
    assert (found["models"], found["refused"]) == (["tiny"], [400, "suffix"])


def test_langchain(url, seal):
    langchain = pytest.importorskip("langchain_openai")
    llm = langchain.OpenAI(
        base_url=f"{url}/v1", api_key="none", model="tiny", temperature=0, max_tokens=8
    )
    wanted = [a.text for a in Model(seal).generate_all(["def f", "2 + 2"], max_new_tokens=8)]
    assert [llm.invoke("def f"), *llm.batch(["2 + 2"])] == wanted
    assert "".join(llm.stream("def f")) == wanted[0]
