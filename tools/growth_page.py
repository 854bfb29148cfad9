"""Writes two tables and a plot of docs/performance.md: how training time grows, and the speeds computed from that.

reads   docs/growth.csv, docs/expected.csv           (benchmarks/growth.py writes them)
writes  docs/performance.md (between its markers), docs/images/growth.svg
command python tools/growth_page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from render_readme import IMAGES, fill, markdown_table, read_csv

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "performance.md"
GROWTH = DOCS / "growth.csv"
EXPECTED = DOCS / "expected.csv"
AXES = {
    "rows": "rows in one pass (time: the pass)",
    "length": "tokens in a row (time: a step of 16 rows)",
    "width": "width of the model (time: a step of 16 rows)",
}
PANELS = {"seconds": ("seconds", "~g"), "peak_mb": ("peak memory, MB", ",.0f")}
COLOURS = {"sft": "#0b7285", "dpo": "#e8590c"}


def main() -> None:
    fill(PAGE, growth=growth(), expected=expected())
    (IMAGES / "growth.svg").write_text(growth_svg(), encoding="utf-8", newline="\n")


def growth() -> str:
    """The table with one line per size, SFT beside DPO, and the plot."""
    points = {(row["grows"], row["size"], row["stage"]): row for row in read_csv(GROWTH)}
    titles = ["grows", "size", "parameters"]
    titles += [f"{stage}, {what}" for stage in COLOURS for what in ("tokens a step", "seconds", "CPU seconds", "MB", "MFU")]
    rows = []
    for grows, size in dict.fromkeys((grows, size) for grows, size, _ in points):
        both = [points[grows, size, stage] for stage in COLOURS]
        cells = [grows, size, f"{int(both[0]['parameters']) / 1e6:.1f} M"]
        for row in both:
            cells += [row["tokens_per_step"], row["seconds"], row["cpu_seconds"], row["peak_mb"], f"{float(row['mfu']):.0%}"]
        rows.append(cells)
    plot = "![Time and memory by rows, length and width](images/growth.svg)"
    return f"{markdown_table(titles, rows)}\n{plot}\n"


def expected() -> str:
    """The table of speeds and sizes computed for TinyLlama."""
    titles = ["machine", "share of the products' rate", "SFT tokens/s", "DPO pairs/s", "weights, GB", "activations, MB a token"]
    return markdown_table(titles, [list(row.values()) for row in read_csv(EXPECTED)])


def growth_svg() -> str:
    """Time and memory by each of the three sizes, as SVG.

    Size and time have logarithmic axes, on which a slope is a power. Memory has a linear axis, since the libraries' share is
    constant.
    """
    import vl_convert

    return vl_convert.vegalite_to_svg(json.dumps(growth_plot(read_csv(GROWTH))), vl_version="5.20")


def growth_plot(rows: list[dict[str, str]]) -> dict[str, Any]:
    """The plot in Vega-Lite, with one column of panels per size that grows."""
    colour = {"field": "stage", "type": "nominal", "scale": {"domain": [*COLOURS], "range": [*COLOURS.values()]}}
    columns = []
    for grows, title in AXES.items():
        points = [numbers(row) for row in rows if row["grows"] == grows]
        ticks = sorted({point["size"] for point in points})
        log = {"type": "log", "nice": False}
        x = {"field": "size", "type": "quantitative", "title": title, "axis": {"values": ticks}, "scale": log}
        panels = []
        for field, (label, format) in PANELS.items():
            scale = {"type": "log"} if field == "seconds" else {"zero": True}
            axis = {"tickCount": 4, "format": format}
            y = {"field": field, "type": "quantitative", "title": label, "axis": axis, "scale": scale}
            encoding = {"x": x, "y": y, "color": colour}
            panels.append({"width": 190, "height": 150, "mark": {"type": "line", "point": True}, "encoding": encoding})
        columns.append({"data": {"values": points}, "vconcat": panels})
    return {"$schema": "https://vega.github.io/schema/vega-lite/v5.json", "hconcat": columns}


def numbers(row: dict[str, str]) -> dict[str, Any]:
    return {"stage": row["stage"], "size": int(row["size"]), **{field: float(row[field]) for field in PANELS}}


if __name__ == "__main__":
    main()
