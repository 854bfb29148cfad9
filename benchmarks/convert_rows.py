"""convert at scale: rows per second of wall time and peak memory, from three layouts.

Rows are composed by the seeded generator of benchmarks/prepare_rows.py (a question, and an answer of three to eight sentences).
They are written as Alpaca's indented JSON array, as JSON lines of preference pairs, and as Parquet; `src/convert.py` runs on each
as a process of its own. Memory is the peak that the system reports of that process.

command PYTHONPATH=src python benchmarks/convert_rows.py [N]          100,000 by default; 1,000,000 need 4 GB of disk for a while
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from legs import BYTES_PER_UNIT, ROOT
from prepare_rows import rows, run

ROWS_OF_A_GROUP = 50_000


def main(size: int) -> None:
    print(f"{'layout':24s}{'rows':>10s}{'seconds':>10s}{'CPU s':>8s}{'rows/s':>9s}{'peak memory, MB':>18s}")
    found = []
    for layout in LAYOUTS:
        found.append(measure(layout, size))
        line = "{layout:24s}{rows:10,d}{seconds:10.1f}{cpu_seconds:8.1f}{rows_per_second:9,d}{peak_mb:18d}"
        print(line.format(**found[-1]), flush=True)
    print(json.dumps(found))


def measure(layout: str, size: int) -> dict[str, Any]:
    """Writes `size` rows in a layout to a temporary folder and converts them."""
    target, name, write = LAYOUTS[layout]
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / name, Path(folder) / "out.jsonl"
        write(source, size)
        command = [sys.executable, str(ROOT / "src/convert.py"), str(source), "--to", target, "--out", str(out)]
        start = time.monotonic()
        usage = run(command, ROOT, os.devnull)
        seconds = time.monotonic() - start
        with out.open("rb") as file:
            written = sum(1 for _ in file)
    if written != size:
        raise SystemExit(f"{layout}: {written} rows came out of {size}")
    return {
        "layout": layout,
        "rows": size,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "rows_per_second": round(size / seconds),
        "peak_mb": round(usage.ru_maxrss * BYTES_PER_UNIT / 1e6),
    }


def write_alpaca(path: Path, size: int) -> None:
    """One array, indented by four spaces as in alpaca_data.json."""
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows(size)):
            alpaca = {"instruction": row["prompt"], "input": "", "output": row["response"]}
            text = json.dumps(alpaca, indent=4).replace("\n", "\n    ")
            file.write(("[\n    " if number == 0 else ",\n    ") + text)
        file.write("\n]\n")


def pairs(size: int) -> Iterator[dict[str, str]]:
    """Each row's answer as chosen, and that of the row before as rejected."""
    rejected = "I do not know."
    for row in rows(size):
        yield {"prompt": row["prompt"], "chosen": row["response"], "rejected": rejected}
        rejected = row["response"]


def write_pairs(path: Path, size: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in pairs(size))


def write_parquet(path: Path, size: int) -> None:
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema([("question", pyarrow.string()), ("answer", pyarrow.string())])
    with parquet.ParquetWriter(path, schema) as writer:
        given = ({"question": row["prompt"], "answer": row["response"]} for row in rows(size))
        while group := list(islice(given, ROWS_OF_A_GROUP)):
            writer.write_table(pyarrow.Table.from_pylist(group, schema))


LAYOUTS = {
    "Alpaca, JSON array": ("sft", "alpaca.json", write_alpaca),
    "pairs, JSON lines": ("pairs", "pairs.jsonl", write_pairs),
    "Parquet": ("sft", "rows.parquet", write_parquet),
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", metavar="N", type=int, nargs="?", default=100_000, help="number of rows")
    main(parser.parse_args().size)
