"""A plan for people: tables in the terminal, Markdown, or one page with plots."""

import html
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

from s7jax.terminal import tables

Rows = list[list[str]]
Section = tuple[str, Sequence[str], Rows]

_COLOURS = ("#3b6fb6", "#e08a2e", "#5aa469", "#b0483f", "#7d6bb0", "#8c8c8c")


def sections(tree: dict[str, Any]) -> list[Section]:
    """Title, columns and rows of every table of a plan."""
    found: list[Section] = []
    sizes = tree["parameters"]
    found.append(
        (
            "Parameters",
            ("component", "parameters", "FP32 bytes"),
            [[name, f"{n:,}", f"{4 * n:,}"] for name, n in sizes.items()]
            + [["total", f"{sum(sizes.values()):,}", f"{4 * sum(sizes.values()):,}"]],
        )
    )
    if tree["jobs"]:
        found += _jobs(tree)
    if tree["memory"]:
        found.append(_memory(tree))
    if tree.get("goodput"):
        found.append(_goodput(tree))
    found += _phases(tree["phases"])
    found += _layout(tree)
    if specification := tree.get("specification"):
        found.append(
            (
                "The specification beside arithmetic",
                ("§", "what", "specification", "ours", "unit", "ratio", "why"),
                [
                    [
                        *(row["section"], row["what"], _number(row["spec"])),
                        *(_number(row["ours"]), row["unit"], f"{row['ratio']:.3g}×", row["why"]),
                    ]
                    for row in specification
                ],
            )
        )
    return found


def terminal(tree: dict[str, Any]) -> None:
    """Print every table."""
    print(_title(tree))
    for section in sections(tree):
        tables.show_table(*section)


def markdown(tree: dict[str, Any]) -> str:
    """Every table in Markdown."""
    parts = [f"# {_title(tree)}"]
    for title, columns, rows in sections(tree):
        parts.append(f"## {title}\n\n{tables.markdown(columns, rows)}")
    return "\n\n".join(parts) + "\n"


def page(tree: dict[str, Any], others: dict[str, dict[str, Any]]) -> str:
    """One self-contained HTML page: plots, then every table.

    Args:
        tree: the plan.
        others: plans of the same work on other meshes, by mesh.
    """
    body = [f"<h1>{html.escape(_title(tree))}</h1>"]
    body += [f"<figure>{plot}</figure>" for plot in _plots(tree, others)]
    for title, columns, rows in sections(tree):
        head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
        cells = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        body.append(f"<h2>{html.escape(title)}</h2><table><tr>{head}</tr>{cells}</table>")
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;"
        "color:#222}table{border-collapse:collapse;font-size:13px}td,th{padding:.25rem .7rem;"
        "border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child,td:last-child"
        "{text-align:left}figure{margin:1rem 0}svg{max-width:100%;height:auto}"
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{html.escape(_title(tree))}</title><style>{style}</style>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _title(tree: dict[str, Any]) -> str:
    return (
        f"{tree['preset']}: {tree['phase']} on {tree['mesh']} of {tree['target']}, "
        f"{tree['mfu']:.0%} utilisation"
    )


def _jobs(tree: dict[str, Any]) -> list[Section]:
    jobs = tree["jobs"]
    work = [
        [
            *(job["name"], f"{job['tokens'] / 1e9:,.3g} B", f"{job['steps']:,}"),
            *(f"{job['tokens_per_step']:,}", f"{job['microbatches_per_group']}"),
            *(f"{job['checkpoints']}", _bytes(job["checkpoint_bytes"])),
            *(f"{job['checkpoint_seconds']:.2g}", f"{job['flops']:.2e}"),
            *(f"{job[k] / 1e6:.0f} M" for k in ("flops_per_token", "flops_per_token_causal")),
        ]
        for job in jobs
    ]
    columns: tuple[str, ...] = (
        "job",
        "tokens",
        "steps",
        "tokens per step",
        "microbatches",
        "checkpoints",
    )
    found: list[Section] = [
        ("Work", (*columns, "each", "s at 1 GB/s", "operations", "per token", "causal"), work)
    ]
    held = [
        [
            job["name"],
            *(
                _bytes(job[f"{kind}_bytes"])
                for kind in ("weights", "frozen", "gradient", "optimizer")
            ),
        ]
        for job in jobs
    ]
    columns = ("job", "weights", "frozen", "gradients", "optimizer")
    found.append(("Memory of a device by arithmetic, FP32, without activations", columns, held))
    if "seconds_step" in jobs[0]:
        times = [
            [
                job["name"],
                *(
                    f"{job[f'seconds_{k}']:.4g}"
                    for k in ("compute", "memory", "collectives", "step")
                ),
                f"{job['tokens_per_second']:,.0f}",
                *(f"{job[k]:,.4g}" for k in ("wall_hours", "device_hours")),
                "" if job["cost"] is None else f"${job['cost']:,.2f}",
            ]
            for job in jobs
        ]
        whole = tree["total"]
        cost = "" if whole["cost"] is None else f"${whole['cost']:,.2f}"
        hours = [f"{whole[k]:,.4g}" for k in ("wall_hours", "device_hours")]
        times.append(["total", "", "", "", "", "", *hours, cost])
        columns = ("job", "s compute", "s memory", "s collectives", "s a step", "tokens/s")
        columns += ("hours", "device-hours", "cost")
        found.append(("Time by roofline", columns, times))
    return found


def _memory(tree: dict[str, Any]) -> Section:
    rows = [
        [
            memory["job"],
            *(
                _bytes(memory[kind])
                for kind in ("weights", "frozen", "gradients", "optimizer", "temporaries", "peak")
            ),
            {True: "yes", False: "no", None: "?"}[memory["fits"]],
            ", ".join(f"{k} {_bytes(n)}" for k, n in memory["collectives"].items()) or "none",
            str(memory["flash"]),
        ]
        for memory in tree["memory"]
    ]
    columns: tuple[str, ...] = ("job", "weights", "frozen", "gradients", "optimizer")
    columns += ("temporaries", "peak")
    columns += ("fits", "collectives of a microbatch", "attention kernels")
    return ("Memory of a device as compiled", columns, rows)


def _goodput(tree: dict[str, Any]) -> Section:
    rows = [
        [
            *(row["job"], f"{row['devices']:,}", row["mesh"]),
            *(f"{row[f'hours_{k}']:,.4g}" for k in ("without", "as_specified", "at_best")),
            f"{row['goodput']:.3%}",
            *(f"{row[f'tokens_{k}'] / 1e9:,.3g} B" for k in ("as_specified", "at_best")),
            f"{row['minutes_at_best']:,.3g}",
            *(f"{row[k]:,.3g}" for k in ("hours_between_failures", "failures_expected")),
            *(f"{60 * row[f'hours_lost_{k}']:,.3g}" for k in ("as_specified", "per_failure")),
            "" if row["cost_per_failure"] is None else f"${row['cost_per_failure']:,.2f}",
        ]
        for row in tree["goodput"]
    ]
    first = tree["goodput"][0]
    columns: tuple[str, ...] = ("job", "devices", "mesh", "hours without failures")
    columns += ("saving as specified", "at best", "goodput", "saved every", "at best every")
    columns += ("minutes", "hours between failures", "failures", "minutes lost by one", "at best")
    title = (
        f"With {first['rate']:.2g} failures per device-hour, {first['restart']:,.0f} s to restart"
    )
    return (title, (*columns, "cost of one"), rows)


def _phases(tree: dict[str, Any]) -> list[Section]:
    titles = {"quantize": "Phase 3: calibration", "infer": "The sealed model at work"}
    found: list[Section] = []
    for name, values in tree.items():
        shown = [
            [key.replace("_bytes", "").replace("_", " "), _figure(key, value)]
            for key, value in values.items()
            if value is not None
        ]
        found.append((titles[name], ("what", "figure"), shown))
    return found


def _figure(key: str, value: float) -> str:
    if key.endswith("_bytes"):
        return _bytes(value)
    return f"${value:,.2f}" if key == "cost" else _number(value)


def _layout(tree: dict[str, Any]) -> list[Section]:
    layer = tree["layout"]["expert_layer"]
    rows = [
        [row["name"], str(row["shape"]), f"{row['numel']:,}", f"{row['padded']:,}"] for row in layer
    ]
    whole = sum(row["padded"] for row in layer)
    rows.append(["one expert layer", "", "", f"{whole:,}"])
    parts = [
        [name, f"{part['int8']:,}", f"{part['padded']:,}", f"{part['constants']:,}"]
        for name, part in tree["layout"]["components"].items()
    ]
    every = tree["layout"]["components"].values()
    sums = [f"{sum(part[k] for part in every):,}" for k in ("int8", "padded", "constants")]
    parts.append(["total", *sums])
    where = [
        [row["component"], str(row["socket"]), f"{row['bytes']:,}", f"{row['tiles_32x32']:,}"]
        for row in tree["placement"]
    ]
    return [
        ("§8: an expert layer, INT8", ("tensor", "shape", "numel", "padded bytes"), rows),
        ("§8: the sealed matrices", ("component", "int8", "padded", "constants besides"), parts),
        ("§8: sockets and tiles", ("component", "socket", "bytes", "tiles of 32 × 32"), where),
    ]


def _plots(tree: dict[str, Any], others: dict[str, dict[str, Any]]) -> list[str]:
    import matplotlib  # noqa: PLC0415 it takes a second, and only pages have plots

    matplotlib.use("svg")
    from matplotlib import pyplot  # noqa: PLC0415

    matplotlib.rcParams["svg.hashsalt"] = "s7jax"  # equal plans give equal pages

    def drawn(draw: Callable[[Any], None], size: tuple[float, float]) -> str:
        figure, axes = pyplot.subplots(figsize=size)
        draw(axes)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        figure.tight_layout()
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        pyplot.close(figure)
        svg = "<svg" + text.getvalue().partition("<svg")[2]
        return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)

    plots = [drawn(lambda axes: _draw_memory(axes, tree), (9, 3.2))] if tree["jobs"] else []
    if "total" in tree:
        plots.append(drawn(lambda axes: _draw_meshes(axes, others), (9, 3.2)))
        plots.append(drawn(lambda axes: _draw_cost(axes, tree), (9, 3.2)))
    return plots


def _draw_memory(axes: Any, tree: dict[str, Any]) -> None:
    kinds = ("weights", "frozen", "gradients", "optimizer", "temporaries")
    bars = tree["memory"] or [
        {
            "job": job["name"],
            "gradients": job["gradient_bytes"],
            **{kind: job[f"{kind}_bytes"] for kind in ("weights", "frozen", "optimizer")},
            "temporaries": 0,
        }
        for job in tree["jobs"]
    ]
    left = [0.0] * len(bars)
    for kind, colour in zip(kinds, _COLOURS, strict=False):
        sizes = [bar[kind] / 2**30 for bar in bars]
        axes.barh([bar["job"] for bar in bars], sizes, left=left, label=kind, color=colour)
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("GiB a device")
    axes.set_title("Memory by kind" + ("" if tree["memory"] else ", without activations"))
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def _draw_meshes(axes: Any, others: dict[str, dict[str, Any]]) -> None:
    parts = ("compute", "memory", "collectives")
    names = list(others)
    for i, (part, colour) in enumerate(zip(parts, _COLOURS, strict=False)):
        seconds = [others[name]["jobs"][0][f"seconds_{part}"] for name in names]
        axes.bar(
            [x + 0.25 * (i - 1) for x in range(len(names))], seconds, 0.25, label=part, color=colour
        )
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("seconds per step")
    axes.set_title("Where a step's time goes, by mesh")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def _draw_cost(axes: Any, tree: dict[str, Any]) -> None:
    whole, mfu = tree["total"], tree["mfu"]
    shares = [i / 100 for i in range(20, 71, 5)]
    key, label = ("cost", "dollars") if whole["cost"] is not None else ("device_hours", "hours")
    compute = sum(
        job["seconds_compute"] * job["steps"] * job["devices"] / 3600 for job in tree["jobs"]
    )
    rest = whole["device_hours"] - compute
    scale = whole[key] / whole["device_hours"]
    axes.plot(shares, [scale * (rest + compute * mfu / s) for s in shares], color=_COLOURS[0])
    axes.plot([mfu], [whole[key]], "o", color=_COLOURS[1])
    axes.set_xlabel("utilisation")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.set_title("Cost by utilisation")


def _bytes(size: float) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:,.2f} {unit}"
    return f"{size:,.0f} B"


def _number(value: float) -> str:
    return f"{value:,.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
