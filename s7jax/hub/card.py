"""The model card: ``README.md`` of an exported folder, with the metadata that the Hub reads."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s7jax.architecture import counts
from s7jax.config import Config

SPDX = "https://huggingface.co/docs/hub/repositories-licenses"


@dataclass(frozen=True)
class Card:
    """What a card says of a model."""

    name: str
    config: Config
    records: Mapping[str, Mapping[str, Any]]  # of the final checkpoints, by phase
    quality: Mapping[str, Any] | None  # held-out report, if there is one
    sources: Sequence[Mapping[str, Any]]  # of the text, each with its domain; none if not known
    datasets: Sequence[str]  # of the Hub, among them

    def metadata(self) -> dict[str, Any]:
        """The Hub's metadata; what is not known is left out."""
        known: dict[str, Any] = {
            "license": "unknown",
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
            "tags": ["s7jax", "mixture-of-experts", "custom_code"],
        }
        if self.sources and all(source["name"].startswith("built-in ") for source in self.sources):
            known["language"] = ["en"]
        if self.datasets:
            known["datasets"] = list(self.datasets)
        if self.quality:
            rows = self.quality["bits_per_byte"].items()
            results = [_result(domain, row["routed"]) for domain, row in rows]
            known["model-index"] = [{"name": self.name, "results": results}]
        return known

    def text(self) -> str:
        """The whole file."""
        head = [f"{key}: {json.dumps(value)}" for key, value in self.metadata().items()]  # YAML
        parts = ["\n".join(["---", *head, "---"]), self._about(), self._use(), self._quality()]
        return "\n\n".join([*parts, self._training(), self._verify(), self._limits()]) + "\n"

    def _about(self) -> str:
        domains, sizes = self.config.model.domains, counts(self.config.model)
        used = sum(sizes.values()) - sum(sizes[f"expert{e}"] for e in range(1, len(domains)))
        return f"""# {self.name}

A language model of a shared trunk and {len(domains)} experts ({", ".join(domains)}). A linear
router chooses at every position the expert whose refinement of the trunk predicts the next token.
{sum(sizes.values()):,} parameters in float32, {used:,} of them for a token; a context of
{self.config.model.context:,} tokens. Trained with s7jax (preset {self.config.preset})."""

    def _use(self) -> str:
        return f"""## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{self.name}", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("{self.name}", trust_remote_code=True)
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0], skip_special_tokens=True))
print(model(**inputs).routes)  # the expert of each position
```

`trust_remote_code` runs `modeling_s7.py` of this folder, which needs torch and transformers alone.
Batches are padded at an end of each row; each text begins with the token that ends documents."""

    def _quality(self) -> str:
        if self.quality is None:
            return "## Quality\n\nNot evaluated: `s7jax evaluate` has not been run."
        bits = self.quality["bits_per_byte"]
        rows = [
            (domain, *(f"{bits[domain][model]:.4f}" for model in ("trunk", "routed", "oracle")))
            for domain in bits
        ]
        accuracy = self.quality["routers"]["router"]["accuracy"]
        return f"""## Quality

Bits per byte on held-out text ({self.config.eval_sequences} sequences per domain), lower is better:

{_table(("domain", "trunk alone", "routed", "the domain's own expert"), rows)}

The router names the domain of a window of text rightly in {accuracy:.1%} of cases."""

    def _training(self) -> str:
        config, inputs = self.config, self.records["trunk"]["inputs"]
        tokens = ", ".join(f"{domain.name} {domain.tokens:,}" for domain in config.domains)
        facts = [
            ("tokens of the trunk", f"{config.trunk.tokens:,}"),
            ("tokens of the experts", tokens),
            ("precision", f"{config.compute.precision}; sums and weights float32"),
            ("seed", config.seed),
            ("configuration, SHA-256", config.digest()),
            ("training data, SHA-256", inputs["data_sha256"]),
            ("tokenizer, SHA-256", inputs["tokenizer_sha256"]),
        ]
        ended = [(name, record["params_sha256"]) for name, record in sorted(self.records.items())]
        found = [
            (s["domain"], *map(_cell, (s["name"], s["license"], f"{s['bytes']:,}", s["sha256"])))
            for s in self.sources
        ]
        text = _table(("domain", "source", "licence", "bytes", "SHA-256"), found)
        return f"""## Training

First the trunk on a mixture of all domains, then each expert alone on its own, on the frozen
trunk; the router is fitted in closed form.

{_table(("what", "value"), facts)}

{text if found else "What text it was trained on is not known here."}

Parameters as each phase ended:

{_table(("phase", "SHA-256"), ended)}"""

    def _verify(self) -> str:
        return f"""## Verify

`s7jax convert {self.name} runs/again` computes the SHA-256 of each phase's parameters again,
refuses a folder in which one differs, and gives back the final checkpoints bit by bit, to be
quantised and sealed. Training is reproducible: the same configuration, text and kind of device
give the same digests."""

    def _limits(self) -> str:
        return f"""## Limits

It continues text and was not trained to follow instructions or to refuse any. It is small: it
makes facts up, and knows nothing outside {", ".join(self.config.model.domains)}. Texts longer
than {self.config.model.context:,} tokens were never trained on.

The licence above is a placeholder: whoever publishes this folder chooses the one that the text it
was trained on allows, and names it in the first lines of this file ([identifiers]({SPDX}))."""


def _result(domain: str, bits: float) -> dict[str, Any]:
    """One result as the Hub's ``model-index`` has it."""
    metric = {"type": "bits_per_byte", "name": "bits per byte, routed", "value": round(bits, 4)}
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": f"{domain}, held out", "type": domain},
        "metrics": [metric],
    }


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _cell(text: str) -> str:
    """Text of others, as it stands in a table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
