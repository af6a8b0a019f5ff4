"""The report for people: one self-contained HTML page, and the same in Markdown."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from rich.filesize import decimal

from s7jax.report.facts import KINDS
from s7jax.report.figures import css, curves, overlay
from s7jax.terminal import tables

Facts = dict[str, Any]
Rows = list[list[str]]

_COLOURS = 6  # of the page
_SPENT = {
    "step": "in steps",
    "compile": "compiling and opening",
    "evaluate": "measuring on held-out text",
    "save": "saving",
    "stall": "waiting for data",
    "lost": "in steps that were done again",
}


class _Page:
    """A page in both forms, written from top to bottom."""

    def __init__(self) -> None:
        self.html: list[str] = []
        self.text: list[str] = []

    def title(self, text: str, level: int = 2) -> None:
        self.html.append(f"<h{level}>{escape(text)}</h{level}>")
        self.text.append(f"{'#' * level} {_plain(text)}")

    def say(self, text: str) -> None:
        self.html.append(f"<p>{escape(text)}</p>")
        self.text.append(_plain(text))

    def show(self, html: str) -> None:
        """What only the page has."""
        self.html.append(html)

    def table(
        self,
        headings: Sequence[str],
        rows: Iterable[Sequence[Any]],
        shade: Callable[[int, int], str] | None = None,
        kind: str = "",
    ) -> None:
        """A table; ``shade`` gives the style of a cell by row and column."""
        cells = [[f"{c:,}" if isinstance(c, int) else str(c) for c in row] for row in rows]
        head = "".join(f"<th scope=col>{escape(name)}</th>" for name in headings)
        body = ""
        for i, row in enumerate(cells):
            styles = [f' style="{shade(i, j)}"' if shade else "" for j in range(len(row))]
            pairs = zip(styles, row, strict=True)
            body += f"<tr>{''.join(f'<td{s}>{escape(cell)}</td>' for s, cell in pairs)}</tr>"
        self.html.append(
            f'<div class=wide><table class="{kind}"><tr>{head}</tr>{body}</table></div>'
        )
        self.text.append(tables.markdown(headings, cells))

    def code(self, text: str) -> None:
        self.html.append(f"<pre>{escape(text)}</pre>")
        self.text.append(f"```bash\n{text}\n```")

    def finished(self, title: str) -> tuple[str, str]:
        """HTML and Markdown."""
        head = (
            '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
            "style-src 'unsafe-inline'; img-src data:\">\n"
            '<link rel="icon" href="data:,">\n'
            f"<title>{escape(title)}</title>\n<style>\n{css()}</style>\n"
        )
        return f"{head}{chr(10).join(self.html)}\n</html>\n", "\n\n".join(self.text) + "\n"


def of_run(facts: Facts, folder: str) -> tuple[str, str]:
    """HTML and Markdown of one run; ``folder`` is how a person names it in a command."""
    page = _Page()
    page.title(f"{facts['name']}: {facts['preset']}", 1)
    page.say(f"{facts['parameters']:,} parameters; experts for {', '.join(facts['domains'])}.")
    _headline(page, facts)
    _curves(page, facts)
    if facts["quality"]:
        _quality(page, facts["quality"])
        _controls(page, facts, folder)
    if facts["sealed"]:
        _sealed(page, facts["sealed"])
    _time(page, facts)
    page.title("Sizes")
    page.table(("what", "size"), [[kind, decimal(size)] for kind, size in facts["sizes"].items()])
    if facts["seal"]:
        _chain(page, facts)
    if facts["proof"]:
        _samples(page, facts)
    if facts["seal"]:
        _verify(page, facts, folder)
    return page.finished(f"{facts['name']}: {facts['preset']}")


def of_runs(runs: Mapping[str, Facts]) -> tuple[str, str]:
    """HTML and Markdown of several runs side by side, by the names they shall have."""
    page, title = _Page(), f"{' · '.join(runs)} side by side"
    page.title(title, 1)
    figures = {name: dict(_figures(facts)) for name, facts in runs.items()}
    rows = [[key, *(figures[name].get(key, "") for name in runs)] for key in _keys(figures)]
    page.table(("", *runs), rows)
    page.title("Bits per byte on held-out text, routed")
    domains = _keys({name: dict.fromkeys(facts["domains"]) for name, facts in runs.items()})
    bits = {name: (facts["quality"] or {}).get("bits_per_byte", {}) for name, facts in runs.items()}
    found = [[bits[name].get(domain, {}).get("routed") for name in runs] for domain in domains]
    rows = [
        [domain, *("" if value is None else f"{value:.4f}" for value in row)]
        for domain, row in zip(domains, found, strict=True)
    ]

    def best(i: int, j: int) -> str:
        values = [value for value in found[i] if value is not None]
        is_best = j > 0 and len(values) > 1 and found[i][j - 1] == min(values)
        return _shade("good", 0.4) if is_best else ""

    page.table(("domain", *runs), rows, best)
    page.title("Loss")
    labels = _keys({n: {p["label"]: p for p in facts["phases"]} for n, facts in runs.items()})
    page.show("<div class=plots>")
    for label in labels:
        phases = {
            name: phase
            for name, facts in runs.items()
            for phase in facts["phases"]
            if phase["label"] == label and phase["tokens"]
        }
        if phases:
            page.show(f"<figure><h3>{escape(label)}</h3>{overlay(phases, label)}</figure>")
    page.show("</div>")
    page.title("Configurations where they differ")
    flat = {name: dict(_flat(facts["config"])) for name, facts in runs.items()}
    rows = [[key, *(str(flat[name].get(key, "")) for name in runs)] for key in _keys(flat)]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    if differing:
        page.table(("field", *runs), differing)
    else:
        page.say("Nowhere.")
    return page.finished(title)


def _headline(page: _Page, facts: Facts) -> None:
    figures = _figures(facts)
    cards = "".join(f"<li><b>{escape(value)}</b>{escape(key)}</li>" for key, value in figures)
    page.show(f"<ul class=facts>{cards}</ul>")
    page.text.append(tables.markdown(("figure", "value"), [list(pair) for pair in figures]))


def _figures(facts: Facts) -> list[tuple[str, str]]:
    """What a run comes to, in a few figures."""
    found = []
    if quality := facts["quality"]:
        bits = [row["routed"] for row in quality["bits_per_byte"].values()]
        found.append(("bits per byte, routed, mean", f"{sum(bits) / len(bits):.4f}"))
        found.append(("router accuracy", f"{quality['routers']['router']['accuracy']:.1%}"))
    trained = sum(phase["tokens"][-1] for phase in facts["phases"] if phase["tokens"])
    found.append(("tokens trained on", f"{trained:,}"))
    if facts["seconds"]:
        found.append(("wall time", _duration(sum(facts["seconds"].values()))))
    if spent := sum(sum(phase["spent"].values()) for phase in facts["phases"]):
        steps = sum(phase["spent"].get("step", 0.0) for phase in facts["phases"])
        found.append(("goodput", f"{steps / spent:.1%}"))
    if facts["seal"]:
        found.append(("sealed, INT8", decimal(facts["seal"]["bytes"])))
    return found


def _curves(page: _Page, facts: Facts) -> None:
    phases = [phase for phase in facts["phases"] if phase["tokens"]]
    if not phases:
        return
    page.title("Training")
    page.show("<div class=plots>")
    for phase in phases:
        figure = curves(phase, facts["domains"], phase["name"])
        page.show(f"<figure><h3>{escape(_phase_name(phase))}</h3>{figure}</figure>")
    page.show("</div>")
    rows = []
    for phase in phases:
        held_out = ", ".join(f"{d} {p[-1][1]:.4f}" for d, p in phase["held_out"].items())
        counts = [len(phase[key]) for key in ("saves", "stops", "skipped")]
        last = phase["loss"][-1]
        loss = "" if last is None else f"{last:.4f}"
        rows.append([_phase_name(phase), phase["tokens"][-1], loss, held_out, *counts])
    headings = ("phase", "tokens", "last loss", "held-out bits per byte", "saved", "stopped")
    page.table((*headings, "skipped steps"), rows)


def _quality(page: _Page, quality: Facts) -> None:
    domains, bits = quality["domains"], quality["bits_per_byte"]
    title, headings, rows = tables.quality_rows(quality)
    page.title(title)
    page.say("Shaded by the gain over the trunk (green) or the loss (red).")
    models = list(bits[domains[0]])

    def gain(i: int, j: int) -> str:
        if j == 0:
            return ""
        row = bits[domains[i]]
        change = row[models[j - 1]] / row["trunk"] - 1
        return _shade("good" if change < 0 else "bad", min(1.0, abs(change) / 0.1))

    page.table(headings, rows, gain)
    if "gains" in quality:  # not in runs of an earlier version
        title, headings, rows = tables.gain_rows(quality)
        page.title(title, 3)
        page.table(headings, rows)
    title, headings, rows = tables.router_rows(quality)
    page.title(title)
    page.table(headings, rows)
    title, headings, rows = tables.confusion_rows(quality)
    page.title(title)
    counts = quality["routers"]["router"]["confusion"]

    def share(i: int, j: int) -> str:
        of_row = counts[i][j - 1] / max(1, sum(counts[i])) if j else 0.0
        return _shade("good" if i == j - 1 else "bad", of_row) if j else ""

    page.table(headings, rows, share)


def _controls(page: _Page, facts: Facts, folder: str) -> None:
    found, command = facts["controls"], f"s7jax controls --run {shlex.quote(folder)}"
    page.title("Whether the experts are worth it")
    if found and found["config_sha256"] != facts["config_sha256"]:
        page.say("The dense models beside this run were compared before its configuration changed.")
        found = None
    if not found:
        page.say(
            "No dense model of equal cost has been compared with this run. This trains three, each "
            "of which takes about as long as the run did, and adds them here:"
        )
        page.code(command)
        return
    title, headings, rows = tables.control_rows(found)
    page.say(title)

    def gain(i: int, j: int) -> str:
        change = found["models"][i]["routed"]["mean"][0]
        if j < len(headings) - 1 or not change:
            return ""
        return _shade("good" if change < 0 else "bad", min(1.0, abs(change) / 0.1))

    page.table(headings, rows, gain)


def _sealed(page: _Page, sealed: Facts) -> None:
    title, headings, rows = tables.sealed_rows(sealed["sealed"])
    page.title("What quantisation costs")
    count = f"{sealed['sequences']} " if "sequences" in sealed else ""
    page.say(f"{title}, on the same {count}held-out sequences of each domain.")
    page.table(headings, rows)


def _time(page: _Page, facts: Facts) -> None:
    phases = [phase for phase in facts["phases"] if phase["tokens"]]
    if not phases:
        return
    page.title("Where the time went")
    kinds = [kind for kind in KINDS if any(kind in phase["spent"] for phase in phases)]
    if kinds:
        swatches = [
            f'<span><i style="background:var(--c{KINDS.index(kind)})"></i>{_SPENT[kind]}</span>'
            for kind in kinds
        ]
        page.show(f"<div class=key>{''.join(swatches)}</div>")
    for phase in phases:
        parts = [
            f'<div style="flex:{seconds:.3f};background:var(--c{KINDS.index(kind)})" '
            f'title="{escape(_SPENT[kind])}: {seconds:.1f} s"></div>'
            for kind, seconds in phase["spent"].items()
        ]
        if parts:
            page.show(f"<h3>{escape(_phase_name(phase))}</h3><div class=bar>{''.join(parts)}</div>")
    rows = []
    for phase in phases:
        spent, speed = phase["spent"], phase["tokens_per_second"]
        cells = [f"{spent.get(kind, 0.0):.1f}" for kind in kinds]
        total = sum(spent.values())
        cells += [f"{total:.1f}", f"{spent.get('step', 0) / total:.1%}"] if total else []
        rows.append([_phase_name(phase), *cells, f"{speed:,.0f}" if speed else ""])
    columns = (*kinds, "seconds", "goodput") if kinds else ()
    page.table(("phase", *columns, "tokens/s"), rows)
    if facts["seconds"]:
        page.say("Wall time of each part when it was made:")
        page.table(("part", "seconds"), [[k, f"{v:.1f}"] for k, v in facts["seconds"].items()])


def _chain(page: _Page, facts: Facts) -> None:
    page.title("From the text to the root")
    page.say(
        "Each row is made of what stands above it, by SHA-256: the root vouches for all of it. "
        "Digests are shortened here."
    )
    boxes = [
        "".join(
            f'<div>{escape(item["what"])}<br><code title="{escape(item["digest"])}">'
            f"{escape(item['digest'][:12])}…</code></div>"
            for item in row
        )
        for row in facts["chain"]
    ]
    page.show("<div class=down>↓</div>".join(f"<div class=chain>{row}</div>" for row in boxes))
    items = [[item["what"], item["digest"]] for row in facts["chain"] for item in row]
    page.text.append(tables.markdown(("what", "SHA-256"), items))


def _samples(page: _Page, facts: Facts) -> None:
    page.title("Ten samples")
    page.say(
        "The sealed model goes on from the first words of held-out documents (grey), on integers "
        "alone, drawn with temperature 0.75. The colour is the expert that wrote it."
    )
    domains = facts["domains"]
    swatches = [
        f'<span><i style="background:var(--c{i % _COLOURS})"></i>{escape(domain)}</span>'
        for i, domain in enumerate(domains)
    ]
    page.show(f"<div class=key>{''.join(swatches)}</div>")
    for sample in facts["proof"]["samples"]:
        parts = "".join(
            f'<span title="{escape(part["domain"])}" '
            f'style="border-color:var(--c{domains.index(part["domain"]) % _COLOURS})">'
            f"{escape(part['text'])}</span>"
            for part in sample["parts"]
        )
        prompt = f"<small>{escape(sample['prompt'])}</small>"
        title = f"<h3>{escape(sample['domain'])}</h3>"
        page.show(f"<div class=sample>{title}<p>{prompt}{parts}</p></div>")
        route = ", ".join(dict.fromkeys(part["domain"] for part in sample["parts"]))
        text = sample["prompt"] + "".join(part["text"] for part in sample["parts"])
        page.text.append(f"**{sample['domain']}**, by {route or 'nobody'}:\n\n{_quoted(text)}")


def _verify(page: _Page, facts: Facts, folder: str) -> None:
    seal = facts["seal"]
    sealed, proven = (shlex.quote(f"{folder}/model/{n}") for n in (seal["file"], "sample.s7p"))
    page.title("Verify it")
    page.say("Whoever has the file and this root can check every byte, and every answer:")
    lines = [f"s7jax verify {sealed} --run --root {seal['root']}"]
    if facts["proof"]:
        lines.append(f"s7jax verify {sealed} --replay {proven}")
    lines.append(f"python tools/s7l_verify.py {sealed} --root {seal['root']}")
    page.code("\n".join(lines))
    if proof := facts["proof"]:
        replayed = proof["replayed"]
        page.say(
            f"The first sample was proven and computed again: {replayed['steps']} steps, chain "
            f"{replayed['chain'][:16]}…"
        )
        rows = [[rule["rule"], rule["verdict"], rule["evidence"]] for rule in proof["rules"]]
        page.table(("rule", "verdict", "evidence"), rows, kind="text")


def _phase_name(phase: Facts) -> str:
    return "trunk" if phase["label"] == "trunk" else f"expert {phase['label']}"


def _shade(colour: str, strength: float) -> str:
    return f"background:color-mix(in srgb, var(--{colour}) {55 * strength:.0f}%, transparent)"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _keys(trees: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Every key of several trees, in the order they come."""
    return list(dict.fromkeys(key for tree in trees.values() for key in tree))


def _flat(tree: Any, at: str = "") -> Iterable[tuple[str, Any]]:
    """Path and value of every field."""
    if isinstance(tree, list) and tree and isinstance(tree[0], dict):
        tree = {item.get("name", i): item for i, item in enumerate(tree)}
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _flat(value, f"{at}.{key}" if at else str(key))
    else:
        yield at, tree


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|" else c for c in text)


def _quoted(text: str) -> str:
    """Text as a block of code that it cannot end."""
    fence = "~~~~"
    while fence in text:
        fence += "~"
    return f"{fence}\n{text}\n{fence}"
