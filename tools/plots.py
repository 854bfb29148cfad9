"""Writes every plot of the pipeline as SVG and PNG; with --page, writes an offline page template for `dvc plots show`.

reads   plots/*.csv and models/base/loss.csv, and their templates .dvc/plots/*.json
writes  dvc_plots/*.svg, dvc_plots/*.png; with --page .dvc/plots.html, which .dvc/config names
command python tools/plots.py            after dvc repro
        python tools/plots.py --page     after a new version of vl-convert-python
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import vl_convert

ROOT = Path(__file__).parent.parent
PAGE = ROOT / ".dvc" / "plots.html"
LICENCES = ROOT / "docs" / "plots_licences.txt"
PICTURES = ROOT / "dvc_plots"
# The newest Vega-Lite 5, the version of our templates and DVC's own.
VEGA_LITE = "5.21"
CONFIG = {
    "background": "white",
    "padding": 10,
    "title": {"fontSize": 15, "subtitleFontSize": 11.5, "subtitleColor": "#59606a", "offset": 12},
    "axis": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "titlePadding": 8, "gridColor": "#e8e5df"},
    "legend": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelLimit": 220},
    "header": {"labelFontSize": 12, "labelColor": "#59606a"},
    "view": {"stroke": "#dedbd4"},
}
OPTIONS = {"renderer": "svg", "ast": True, "actions": {"export": True, "source": False, "compiled": False, "editor": False}}
# DVC replaces {plot_divs} by the plots. Without a {scripts} it adds no scripts from a content delivery network.
TEMPLATE = """<!doctype html>
<html lang="en">
<!--
%(licences)s
-->
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
img-src 'self' file: data: blob:">
<meta name="viewport" content="width=device-width, initial-scale=1">
{refresh_tag}
<title>Plots</title>
<style>
body { margin: 1.5rem; font: 1rem/1.5 system-ui, sans-serif; background: #f4f2ee; color: #1d2126; }
h1 { font-size: 1.3rem; }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%%, 34rem), 1fr)); gap: 1rem; align-items: start; }
main > div { box-sizing: border-box; min-width: 0; background: #fff; border: 1px solid #dedbd4; \
border-radius: 10px; padding: .4rem; }
main svg { max-width: 100%%; height: auto; }
@media (max-width: 30rem) { body { margin: .5rem; } main > div { padding: 0; } }
</style>
<script>
%(bundle)s
</script>
<script>
{
  const draw = window.vegaEmbed;
  window.drawing = []; // settled when all plots stand
  window.vegaEmbed = (place, spec) => { drawing.push(draw(place, spec, %(options)s)); };
}
</script>
</head>
<body>
<h1>Plots</h1>
<main>
{plot_divs}
</main>
</body>
</html>
"""


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Write every plot as SVG and PNG into dvc_plots/.")
    parser.add_argument("--page", action="store_true", help="write .dvc/plots.html instead, from the pinned vl-convert-python")
    if parser.parse_args(arguments).page:
        PAGE.write_text(plots_page(), encoding="utf-8", newline="\n")
        return
    PICTURES.mkdir(exist_ok=True)
    for name, specification in specifications().items():
        path = PICTURES / name.removesuffix(".csv").replace("/", "_")
        path.with_suffix(".svg").write_text(svg(specification), encoding="utf-8", newline="\n")
        path.with_suffix(".png").write_bytes(png(specification))
        print(path.with_suffix(".svg").relative_to(ROOT), path.with_suffix(".png").relative_to(ROOT))


def specifications() -> dict[str, dict[str, Any]]:
    """Every plot of the workspace as Vega-Lite, by the path of its data."""
    command = [sys.executable, "-m", "dvc", "plots", "show", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    drawn = json.loads(done.stdout)["data"]
    return {name: of_one_run(plots[0]["content"]) for name, plots in drawn.items() if plots}  # methods that never ran have none


def of_one_run(specification: dict[str, Any]) -> dict[str, Any]:
    """The plot without the panels or dashes that separate revisions, since there is only the workspace."""
    single = {**specification, **specification.get("spec", {})}
    layers = [
        layer | {"encoding": {channel: value for channel, value in layer["encoding"].items() if channel != "strokeDash"}}
        for layer in single["layer"]
    ]
    return {key: value for key, value in single.items() if key not in ("facet", "spec")} | {"layer": layers}


def svg(specification: dict[str, Any]) -> str:
    return vl_convert.vegalite_to_svg(specification, vl_version=VEGA_LITE, config=CONFIG)


def png(specification: dict[str, Any]) -> bytes:
    return vl_convert.vegalite_to_png(specification, vl_version=VEGA_LITE, config=CONFIG, scale=2)


def plots_page() -> str:
    """The page with Vega, Vega-Lite and Vega-Embed from the pinned vl-convert-python; its bytes are reproducible."""
    bundle = vl_convert.javascript_bundle(vl_version=VEGA_LITE)  # type: ignore[call-arg]  # the stub requires the optional snippet
    assert "</script" not in bundle and "{plot_divs}" not in bundle
    options = json.dumps(OPTIONS | {"config": CONFIG})
    return TEMPLATE % {"licences": LICENCES.read_text(encoding="utf-8").strip(), "bundle": bundle, "options": options}


if __name__ == "__main__":
    main(sys.argv[1:])
