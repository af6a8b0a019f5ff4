"""Tables for people, whole at any width: no figure is cut or broken."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Rows = tuple[str, Sequence[str], list[list[Any]]]  # title, headings, cells

TEXTS = ("why", "evidence")  # columns that may be broken between words


WIDE = 10_000  # columns of what is no terminal: nothing has to be folded


class _Console(Console):
    def on_broken_pipe(self) -> None:  # Rich would end the process; how is s7jax.terminal.cli's
        raise BrokenPipeError


def show(report: dict[str, Any]) -> None:
    """Print whichever parts of a report are there: quality, proof, artifacts, times."""
    if quality := report.get("quality"):
        tables = [quality_rows(quality), router_rows(quality), confusion_rows(quality)]
        if "gains" in quality:  # not in runs of an earlier version
            tables.insert(1, gain_rows(quality))
        for table in tables:
            show_table(*table)
    if sealed := report.get("sealed"):
        show_table(*sealed_rows(sealed))
    if artifacts := report.get("artifacts"):
        show_table("Artifacts", ("artifact", "bytes", "sha256 or root"), artifacts)
    if seconds := report.get("seconds"):
        rows = [[phase, f"{value:.1f}"] for phase, value in seconds.items()]
        show_table("Wall time", ("phase", "seconds"), rows)
    if proof := report.get("proof"):
        show_replay(proof["replayed"])
        rules = [f"{rule['rule']} {rule['verdict']}" for rule in proof["rules"]]
        print(f"rules: {', '.join(rules)}")


def show_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; in a narrow terminal its headings broken, or one line for each cell."""
    console = _Console()
    if not console.is_terminal:
        console = _Console(width=WIDE)
    cells = [[f"{c:,}" if isinstance(c, int) else str(c) for c in row] for row in rows]
    print(title)
    natural = console.options.update(width=WIDE, max_width=WIDE)
    for shown in (headings, [heading.replace(" ", "\n") for heading in headings]):
        table = _table(shown, cells)
        if console.measure(table, options=natural).minimum <= console.width:
            console.print(table)
            return
    width = max(map(len, headings[1:]), default=0)
    for first, *others in cells:
        print(f"  {first}")
        for heading, cell in zip(headings[1:], others, strict=True):
            print(f"    {heading:<{width}}  {cell}")


def _table(headings: Sequence[str], cells: list[list[str]]) -> Table:
    """Columns as wide as the longest line of their heading and their cells."""
    table = Table()
    for i, heading in enumerate(headings):
        if heading in TEXTS:
            table.add_column(heading)
        else:
            width = max(map(cell_len, [*heading.split("\n"), *(row[i] for row in cells)]))
            justify: Literal["left", "right"] = "right" if i else "left"
            table.add_column(heading, justify=justify, no_wrap=True, min_width=width)
    for row in cells:
        table.add_row(*map(escape, row))
    return table


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; what its cells hold cannot end them."""
    lines = [headings, ["---"] * len(headings), *rows]
    cells = (" | ".join(c.replace("|", "\\|").replace("\n", " ") for c in line) for line in lines)
    return "\n".join(f"| {line} |" for line in cells)


def sealed_rows(domains: dict[str, Any]) -> Rows:
    """The sealed model beside the float one."""
    rows = [
        [
            *(domain, name),
            *(f"{row[key]:.4f}" for key in ("bits_per_byte", "sealed_bits_per_byte")),
            f"{100 * (row['perplexity_ratio'] - 1):+.3f} %",
            f"{100 * row['agreement']:.2f} %",
            f"{row['kl']:.2e}",
        ]
        for domain, models in domains.items()
        for name, row in models.items()
    ]
    columns = ("domain", "model", "bits per byte", "sealed", "perplexity", "same token", "KL")
    return "The sealed integer model beside the float one", columns, rows


def show_tasks(report: dict[str, Any]) -> None:
    """Print what float and sealed model know of benchmark tasks, and the specification's rules."""
    rows = []
    for name, row in report["tasks"].items():
        for form in ("FP32", "INT8"):
            found, error = row[form], row[form].get("accuracy_stderr")
            accuracy = "" if error is None else f"{found['accuracy']:.3f} ± {error:.3f}"
            numbers = (found.get(key) for key in ("executed", "margin", "bits_per_byte"))
            cells = ("" if n is None else f"{n:.4f}" for n in numbers)
            rows.append([name, row["items"], form, accuracy, *cells])
    columns = ("task", "items", "model", "accuracy", "executed", "margin", "bits per byte")
    show_table("Benchmark tasks", columns, rows)
    rules = [
        [row["rule"], *(_number(row[key]) for key in ("FP32", "INT8", "ratio")), row["verdict"]]
        for row in report["rules"]
    ]
    show_table("Specification, section 5", ("rule", "FP32", "INT8", "ratio", "verdict"), rules)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def show_tensors(title: str, rows: list[dict[str, Any]]) -> None:
    """Print one row per tensor, whatever its columns; digests shortened."""
    if not rows:
        print(title)
        return
    cells = [[_cell(name, value) for name, value in row.items()] for row in rows]
    show_table(title, tuple(rows[0]), cells)


def show_seal(listing: dict[str, Any]) -> None:
    """Print what a sealed file says of itself: tensors, components, folds, origin, quality."""
    provenance = dict(listing["provenance"])
    show_tensors(f"{len(listing['tensors'])} tensors", listing["tensors"])
    show_tensors("Components", listing["components"])
    show_tensors("Routing", listing["routing"])
    folds = [[fold, lane] for fold, lane in listing["folds"].items()]
    show_table("Folds", ("fold", "lane"), folds)
    if "bits_per_byte" in (provenance.get("quality") or {}):
        show({"quality": provenance.pop("quality")})
    facts = {**listing["file"], "parent": listing["parent"], **listing["hashes"]}
    show_table("Seal", ("what", "value"), [[k, f"{v}"] for k, v in facts.items()])
    print("Provenance")
    print(json.dumps(provenance, indent=1, ensure_ascii=False))


def _cell(name: str, value: Any) -> Any:
    if name == "sha256":
        return f"{value[:16]}…"
    return f"{value:.6g}" if isinstance(value, float) else value


def quality_rows(quality: dict[str, Any]) -> Rows:
    """Bits per byte: one row per domain, one column per model."""
    domains, bits = quality["domains"], quality["bits_per_byte"]
    models = list(bits[domains[0]])
    headings = [f"{m} {domains[int(m[6:])]}" if m.startswith("expert") else m for m in models]
    rows = [[domain, *(f"{bits[domain][model]:.4f}" for model in models)] for domain in domains]
    return "Bits per byte on held-out text", ("domain", *headings), rows


def gain_rows(quality: dict[str, Any]) -> Rows:
    """What experts and routing change, against the trunk, with 95 % intervals."""
    domains, bits, gains = quality["domains"], quality["bits_per_byte"], quality["gains"]
    experts = [f"expert{e}" for e in range(len(domains))]
    best = sum(min(experts, key=bits[d].__getitem__) == experts[e] for e, d in enumerate(domains))
    rows = []
    for domain in domains:
        cells = (tuple(100 * x for x in gains[domain][name]) for name in ("oracle", "routed"))
        rows.append([domain, *(f"{m:+.2f} % [{low:+.2f}, {high:+.2f}]" for m, low, high in cells)])
    title = (
        "Bits per byte against the trunk, 95 % intervals (bootstrap over documents); "
        f"a domain's own expert is the best in {best} of {len(domains)}"
    )
    return title, ("domain", "its own expert", "routed"), rows


def control_rows(report: dict[str, Any]) -> Rows:
    """Every model of a run beside dense ones: what it cost, and how far the routed one is off."""
    domains, rows = report["domains"], []
    names = {f"expert{e}": f"expert {domain}" for e, domain in enumerate(domains)}
    names |= {f"dense_{of.lower()}": f"dense, equal {of}" for of in ("FLOPs", "tokens", "time")}
    names |= {"dense_parameters": "dense, equal FLOPs and parameters", "oracle": "its own expert"}
    names |= {"random": "random expert", "nearest_centroid": "nearest centroid"}
    for row in report["models"]:
        cost = (f"{row['tokens']:,}", f"{row['operations']:.3g}", f"{row['parameters']:,}")
        bits = [row["bits_per_byte"][domain] for domain in domains]
        change, low, high = (100 * x for x in row["routed"]["mean"])
        against = "" if row["model"] == "routed" else f"{change:+.2f} % [{low:+.2f}, {high:+.2f}]"
        cells = [f"{value:.4f}" for value in (*bits, row["mean"])]
        rows.append([names.get(row["model"], row["model"]), *cost, *cells, against])
    title = (
        "Bits per byte on the same held-out text; the last column is the routed model's against "
        "each, in mean over the domains, with 95 % intervals (bootstrap over documents)"
    )
    costs = ("tokens", "FLOPs", "parameters read")
    return title, ("model", *costs, *domains, "mean", "routed against it"), rows


def router_rows(quality: dict[str, Any]) -> Rows:
    """What choosing the expert costs, by router."""
    domains = quality["domains"]
    rows = []
    for name, row in quality["routers"].items():
        bits = [row["bits_per_byte"][domain] for domain in domains]
        cells = [f"{value:.4f}" for value in (*bits, sum(bits) / len(bits))]
        label = "ridge (the router)" if name == "router" else name.replace("_", " ")
        rows.append([label, f"{100 * row['accuracy']:.1f} %", *cells])
    headings = ("choice of expert", "accuracy", *domains, "mean bits per byte")
    return "Routers (accuracy on windows of 256 tokens)", headings, rows


def confusion_rows(quality: dict[str, Any]) -> Rows:
    """Where windows of each domain were sent."""
    domains, counts = quality["domains"], quality["routers"]["router"]["confusion"]
    rows = [[domain, *map(str, row)] for domain, row in zip(domains, counts, strict=True)]
    return "Windows by true domain (row) and chosen expert (column)", ("", *domains), rows


def show_findings(findings: Iterable[Any]) -> None:
    """Print each rule with its verdict and its evidence."""
    for finding in findings:
        print(f"{finding.rule:<5}{finding.verdict}\n     {finding.evidence}")


def show_replay(replayed: dict[str, Any]) -> None:
    """Print what a replayed proof has proven; control characters are escaped, nothing is cut."""
    prompt, policy = replayed["prompt"], replayed["policy"]
    asked = ascii_safe(prompt["text"]) if prompt["text"] is not None else f"ids {prompt['ids']}"
    start = ", as the start of a document" if prompt["document_start"] else ""
    how = "greedy" if not policy["temperature"] else f"drawn: {_drawn(policy)}"
    if policy["logit_bias"]:
        how += f", biases {policy['logit_bias']}"
    most = policy["max_new_tokens"] or "as many as the context holds"
    route = ", ".join(f"{part['domain']} {part['tokens']}" for part in replayed["experts"])
    print(f"replayed {replayed['steps']} steps, chain {replayed['chain']}")
    print(f"  model    {_name(replayed['model'])}, root {replayed['root']}")
    print(f"  prompt   {asked} ({prompt['tokens']} tokens{start})")
    stops = [*map(str, policy["stop"]), *map(ascii_safe, policy["stop_texts"])]
    print(f"  policy   {how}; at most {most} tokens; stops [{', '.join(stops)}]")
    print(f"  answer   {ascii_safe(replayed['answer'])}")
    print(f"  end      {replayed['end']}; experts: {route or 'none'}")


def ascii_safe(text: str) -> str:
    r"""Text in quotes on one line, no two texts alike.

    What would move a cursor, hide or end the quotes is escaped; bytes that are no UTF-8, lone
    surrogates here, are ``\xNN``.
    """
    return f'"{"".join(map(_escaped, text))}"'


def _escaped(c: str) -> str:
    if "\udc80" <= c <= "\udcff":
        return f"\\x{ord(c) - 0xDC00:02x}"
    if c in '"\\':
        return f"\\{c}"
    # \u, for \x would be a byte
    return c if c.isprintable() else c.encode("unicode_escape").decode().replace("\\x", "\\u00")


def _name(model: Any) -> str:
    """What a sealed file calls itself: any value, of any maker."""
    return ascii_safe(model)[1:-1] if model and isinstance(model, str) else "unnamed"


def _drawn(policy: dict[str, Any]) -> str:
    names = ("temperature", "top_k", "top_p", "seed")
    return ", ".join(f"{name} {policy[name]}" for name in names)
