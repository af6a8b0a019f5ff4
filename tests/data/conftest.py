"""Small corpora, made once."""

import json

import pytest

from s7jax.config import PRESETS
from s7jax.data.builtin import math, reason
from s7jax.data.prepare import prepare
from s7jax.data.tokenizer import Tokenizer

DOMAINS = PRESETS["s7-nano"].model.domains

VOCAB, CONTEXT = 320, 16


@pytest.fixture(scope="session")
def small_sources(tmp_path_factory):
    """A few kilobytes of distinct text a domain, as paths by domain."""
    folder = tmp_path_factory.mktemp("sources")
    for i, domain in enumerate(DOMAINS):
        generator = (math, reason)[i % 2]
        lines = [json.dumps({"text": generator.document(i, n)}) for n in range(60 + 10 * i)]
        (folder / f"{domain}.jsonl").write_text("\n".join(lines) + "\n")
    return {domain: [folder / f"{domain}.jsonl"] for domain in DOMAINS}


@pytest.fixture(scope="session")
def small(small_sources, tmp_path_factory):
    """Prepared rows of the small corpora."""
    out = tmp_path_factory.mktemp("prepared")
    domains = PRESETS["s7-nano"].domains
    return prepare(
        small_sources, out, domains=domains, vocab=VOCAB, context=CONTEXT, held_out=0.2, workers=1
    )


@pytest.fixture(scope="session")
def tokenizer():
    texts = [generator.document(0, i) for generator in (math, reason) for i in range(200)]
    return Tokenizer.train([*texts, "<|eod|> " * 100], 512)
