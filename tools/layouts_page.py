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

`PYTHONPATH=src python benchmarks/convert_rows.py 1000000` (2026-11-28, one run on two cores that did nothing else; rows of about
120 tokens, pairs of two such answers). Memory does not grow with the file, but for a hash of each id.

| layout | rows | seconds | rows/s | CPU seconds | rows per CPU second | peak memory, MB |
| --- | --- | --- | --- | --- | --- | --- |
| Alpaca, JSON array | 1,000,000 | 13.8 | 72,360 | 13.8 | 72,500 | 133 |
| pairs, JSON lines | 1,000,000 | 23.3 | 42,950 | 23.3 | 42,900 | 133 |
| Parquet | 1,000,000 | 11.6 | 85,929 | 11.6 | 86,200 | 352 |

Under a load of 10 to 13, with half of a core for the process, the same took 34.1, 52.6 and 23.0 s.
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
