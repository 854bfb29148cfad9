"""Writes docs/data-formats.md: the layouts that convert reads, from the samples that the tests run.

command PYTHONPATH=src:tests python tools/layouts_page.py
"""

from __future__ import annotations

from pathlib import Path

from support.layouts import CASES

from aligner.files import write_text
from aligner.markdown import markdown, table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "data-formats.md"
INTRODUCTION = """# Data formats

`prepare` reads JSON lines in a few strict formats ([README](../README.md#your-own-data)). `python src/convert.py` turns files of
other types and layouts into them. It recognises a layout by its keys; `--map KEY=COLUMN` gives a column the name of such a key.
Each line below is a test (`tests/convert/test_layouts.py`) on a small sample in that layout, written by hand. The first number is
the rows of the sample, the second the rows that come out: tool calls, images, ties and the like are left out and counted.
"""
SPEED = """
## Speed and memory

`PYTHONPATH=src python benchmarks/convert_rows.py 1000000` (2026-11-28, one run at raised priority on two busy cores, load
10 to 13; rows of about 120 tokens, pairs of two such answers). Memory does not grow with the file, but for a hash of each id.

| layout | rows | seconds | rows/s | CPU seconds | rows per CPU second | peak memory, MB |
| --- | --- | --- | --- | --- | --- | --- |
| Alpaca, JSON array | 1,000,000 | 34.1 | 29,288 | 16.8 | 59,500 | 133 |
| pairs, JSON lines | 1,000,000 | 52.6 | 19,005 | 29.1 | 34,400 | 133 |
| Parquet | 1,000,000 | 23.0 | 43,524 | 14.7 | 68,000 | 311 |

The process had half of a core or a little more, so wall time says more about the load than about the program. The run before,
mostly at normal priority, took 55.3, 71.9 and 37.1 s for the same 16.8, 29.4 and 14.5 CPU seconds.
"""


def page() -> str:
    rows = [
        [markdown(case.name), markdown(case.source), f"`{case.command}`", str(len(case.rows)), str(case.out)] for case in CASES
    ]
    return INTRODUCTION + "\n" + table(["layout", "used by", "command", "rows in", "rows out"], rows) + "\n" + SPEED


def main() -> None:
    write_text(PAGE, page())


if __name__ == "__main__":
    main()
