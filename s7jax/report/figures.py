"""Curves as SVG that stands in a page: its colours are the page's, light or dark."""

import io
import math
import re
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

INK, FAINT = "#010203", "#040506"  # stand for the page's text and lines
SERIES = tuple(f"#0a0b{i:02x}" for i in range(6))  # and for its colours
SIZE = 5.2, 2.9  # inches: a column of the page, readable on a phone
LABEL = 40  # characters of a run's name that leave room for its curve


def css() -> str:
    """The style sheet of the page, with the colours of its curves."""
    return (files("s7jax.report") / "page.css").read_text(encoding="utf-8")


class Picture:
    """An SVG that stands by itself: a notebook shows it, in the page's colours.

    Attributes:
        svg: its text, as it stands in a page.
    """

    def __init__(self, svg: str) -> None:
        self.svg = svg

    def _repr_html_(self) -> str:
        names = ("faint", *(f"c{i}" for i in range(len(SERIES))))
        found = dict(re.findall(r"--(\w+): (#\w+);", css().partition("@media")[0]))
        colours = ";".join(f"--{name}:{found[name]}" for name in names)
        return f'<div style="max-width:40rem;{colours}">{self.svg}</div>'


def curves(phase: dict[str, Any], domains: Sequence[str], name: str) -> str:
    """Loss of a phase with what happened on the way; below it held-out bits per byte."""

    def draw(axes: Any, below: Any) -> None:
        loss = [math.nan if value is None else value for value in phase["loss"]]
        axes.plot(phase["tokens"], loss, color=INK, **_line(loss))
        axes.set_ylabel("loss, nats")
        for domain, points in phase["held_out"].items():
            tokens, bits = zip(*points, strict=True)
            colour = SERIES[domains.index(domain) % len(SERIES)]
            style = {"marker": "o", "markersize": 3, "linewidth": 1}
            below.plot(tokens, bits, color=colour, label=domain, **style)
        floor = axes.get_ylim()[0]
        events = (("saves", "^", "saved"), ("stops", "v", "stopped"), ("skipped", "x", "skipped"))
        for key, marker, label in events:
            if at := phase[key]:
                style = {"linestyle": "none", "marker": marker, "markersize": 4, "clip_on": False}
                axes.plot(at, [floor] * len(at), color=FAINT, label=label, **style)
        axes.set_ylim(bottom=floor)
        below.set_ylabel("held-out bits/byte")

    return _drawn(draw, name, rows=2)


def overlay(phases: dict[str, dict[str, Any]], name: str) -> str:
    """The loss of one phase in several runs, by the run's name."""

    def draw(axes: Any) -> None:
        for i, (run, phase) in enumerate(phases.items()):
            loss = [math.nan if value is None else value for value in phase["loss"]]
            colour = SERIES[i % len(SERIES)]
            label = run if len(run) <= LABEL else f"…{run[1 - LABEL :]}"
            axes.plot(phase["tokens"], loss, color=colour, label=label, **_line(loss))
        axes.set_ylabel("loss, nats")

    return _drawn(draw, name)


def _line(values: Sequence[float]) -> dict[str, Any]:
    """A line; of one step a point, which a line would not show."""
    return {"linewidth": 1} | ({"marker": "o", "markersize": 3} if len(values) == 1 else {})


def _drawn(draw: Callable[..., None], name: str, rows: int = 1) -> str:
    """An SVG of equal bytes for equal facts; ``name`` keeps its ids apart from others'."""
    import matplotlib as mpl  # noqa: PLC0415 it takes a second, and only pages have curves
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.ticker import EngFormatter  # noqa: PLC0415

    ink = {f"{part}.color": INK for part in ("text", "xtick", "ytick")} | {"axes.labelcolor": INK}
    look = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9, "axes.edgecolor": FAINT}
    with mpl.rc_context(ink | look):
        width, height = SIZE
        figure = Figure(figsize=(width, height * (1 + rows) / 2), layout="constrained")
        parts = figure.subplots(rows, sharex=True, squeeze=False).ravel()
        draw(*parts)
        parts[-1].set_xlabel("tokens")
        parts[-1].xaxis.set_major_formatter(EngFormatter(sep=""))  # 20k, 1.5M
        for axes in parts:
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
            axes.grid(color=FAINT, linewidth=0.3)
            if axes.get_legend_handles_labels()[1]:
                axes.legend(frameon=False, fontsize=8, ncols=2)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = "<svg" + text.getvalue().partition("<svg")[2]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # which no two figures of a page may share
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    for i, colour in enumerate(SERIES):
        svg = svg.replace(colour, f"var(--c{i})")
    svg = svg.replace(INK, "currentColor").replace(FAINT, "var(--faint)")
    return re.sub(r"font: [^;\"]*?(\d+(?:\.\d+)?px)[^;\"]*", r"font: \1 system-ui, sans-serif", svg)
