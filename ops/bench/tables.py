"""Medians, ratios and charts of interleaved measurements."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from engines import Point

OURS = "quantd"

Values = Mapping[Point, Mapping[str, Sequence[float]]]
"""Point -> engine -> tokens/s, one value for each round."""


def _titled(point: Point) -> list[str]:
    if point.test == "prefill":
        return [f"prefill {point.depth_tokens}", str(point.sessions), point.kv_type]
    return [f"decode at {point.depth_tokens}", str(point.sessions), point.kv_type]


def speed_table(values: Values) -> str:
    """Markdown: medians of each engine and our ratio to the best peer, one row for each point.

    The ratio is the median over rounds of (ours / best peer mode of that round's median), so both sides saw the same minutes;
    the best peer mode is the one with the highest median at that point.
    """
    engines = list(dict.fromkeys(engine for row in values.values() for engine in row))
    header = ["test", "sessions", "KV", *engines, "ratio to the best peer"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for point in sorted(values, key=lambda p: (p.test != "prefill", p.depth_tokens, p.kv_type, p.sessions)):
        row = values[point]
        medians = {engine: statistics.median(row[engine]) for engine in row}
        others = {engine: median for engine, median in medians.items() if engine != OURS}
        ratio = "-"
        if others and OURS in medians:
            best = max(others, key=lambda engine: others[engine])
            pairs = [ours / theirs for ours, theirs in zip(row[OURS], row[best], strict=False)]
            ratio = f"{statistics.median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})"
        cells = [f"{medians[engine]:.1f}" if engine in medians else "-" for engine in engines]
        lines.append("| " + " | ".join([*_titled(point), *cells, ratio]) + " |")
    return "\n".join(lines)


def spread(values: Iterable[float], unit: str = "s") -> str:
    """Median with the range."""
    ordered = sorted(values)
    return f"{statistics.median(ordered):.2f} {unit} ({ordered[0]:.2f} to {ordered[-1]:.2f})"


_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 360, 56, 190, 40, 44
_COLOURS = ("#0b6e4f", "#c1440e", "#e0a458", "#3d5a80", "#98c1d9", "#6d597a")


def chart(title: str, x_title: str, lines: Mapping[str, Mapping[int, float]]) -> str:
    """An SVG line chart; `lines` is name -> x -> tokens/s, the x axis has one even step for each x."""
    ticks = sorted({x for line in lines.values() for x in line})
    top = max((y for line in lines.values() for y in line.values()), default=1.0) * 1.08
    plot_width, plot_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(x: int, y: float) -> tuple[float, float]:
        share = ticks.index(x) / max(1, len(ticks) - 1)
        return _LEFT + share * plot_width, _TOP + (1 - y / top) * plot_height

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="14">{escape(title)}</text>',
        f'<text x="{_LEFT + plot_width / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_title)}</text>',
    ]
    for step in range(5):
        y = top * step / 4
        _, height = at(ticks[0], y)
        parts.append(
            f'<line x1="{_LEFT}" y1="{height:.1f}" x2="{_LEFT + plot_width}" y2="{height:.1f}" stroke="#ddd"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{y:.0f}</text>')
    for x in ticks:
        across, _ = at(x, 0)
        parts.append(f'<text x="{across:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{x}</text>')
    for index, (name, line) in enumerate(lines.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        points = [at(x, y) for x, y in sorted(line.items())]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        width = 3 if name == OURS else 1.5
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        key = _TOP + 18 * index
        parts.append(
            f'<rect x="{_WIDTH - _RIGHT + 16}" y="{key - 9}" width="12" height="12" fill="{colour}"/>'
        )
        parts.append(f'<text x="{_WIDTH - _RIGHT + 34}" y="{key + 2}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def write_charts(values: Values, folder: Path, model: str) -> list[Path]:
    """Decode speed against sessions and against depth, where more than one was measured."""
    written = []
    decode = [point for point in values if point.test == "decode"]
    for kind, x_title, key in (
        ("sessions", "sessions decoding together", lambda p: p.sessions),
        ("depth", "tokens that the session holds", lambda p: p.depth_tokens),
    ):
        chosen = [
            p for p in decode
            if p.kv_type == "f16" and (p.depth_tokens == min(q.depth_tokens for q in decode) if kind == "sessions" else p.sessions == 1)
        ]  # fmt: skip
        if len({key(point) for point in chosen}) < 2:
            continue
        lines: dict[str, dict[int, float]] = {}
        for point in chosen:
            for engine, rounds in values[point].items():
                lines.setdefault(engine, {})[key(point)] = statistics.median(rounds)
        path = folder / f"decode-by-{kind}.svg"
        path.write_text(chart(f"{model}: decode, tokens/s", x_title, lines))
        written.append(path)
    return written
