"""runs: the runs recorded in experiments/ as a table, newest last; or what differs between two of them.

reads   experiments/*.json
command python src/runs.py                 all runs (--stage dpo, --last 20)
        python src/runs.py --diff A B      A and B are ids of the table, or their beginnings; a stage's name is its newest run
"""

from __future__ import annotations

import argparse
import sys
from typing import TextIO

from aligner.run import history
from aligner.run.errors import InputError
from aligner.run.terminal import printable, write_line


def main(arguments: argparse.Namespace, out: TextIO) -> None:
    records = history.read_all()
    if not records:
        raise InputError(f"{history.FOLDER} holds no records yet. Run: dvc repro")
    if arguments.diff:
        columns = ("value", *arguments.diff)
        rows = history.differences(*(history.find(records, name) for name in arguments.diff))
    else:
        wanted = arguments.stage
        chosen = [(name, record) for name, record in records.items() if wanted in (None, record["stage"].partition("@")[0])]
        columns, rows = history.COLUMNS, [history.row(*each) for each in chosen[-arguments.last :]]
    for line in history.table(columns, rows):
        write_line(out, printable(line))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", help="only this stage, such as dpo")
    parser.add_argument("--last", type=int, default=0, metavar="N", help="only the newest N; default: all")
    parser.add_argument("--diff", nargs=2, metavar=("A", "B"), help="what differs between two runs")
    try:
        main(parser.parse_args(), sys.stdout)
    except InputError as error:
        raise SystemExit(f"runs: {error}") from None
