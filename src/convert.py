"""convert: turns data of any common layout and file type into the JSON lines that prepare reads.

reads   SOURCE: JSON lines, a JSON array, CSV, Parquet or Arrow (also gzip, bzip2, xz), a folder of these or one that `datasets`
        saved, LLaMA-Factory's dataset_info.json, or owner/name on the Hugging Face hub; params.yaml for the three samples
writes  OUT, with one row per kept row; prints the layout, what was left out and why, and three rows as they will be trained on
command python src/convert.py data/raw/alpaca_data.json --to sft --out data/raw/alpaca.jsonl
        python src/convert.py rows.parquet --to sft --map instruction=question --map output=solution --out data/raw/rows.jsonl
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from aligner.convert.conversion import SHOWN, TARGETS, Conversion
from aligner.convert.samples import sample
from aligner.convert.sources import Source, is_listing, listed_source, rows_of
from aligner.markdown import table
from aligner.model.chat import Chat
from aligner.model.hub import TOKENIZER_FILES, model_folder
from aligner.run import params as parameters
from aligner.run.errors import InputError
from aligner.run.terminal import bar, printable, write_line

PARAMS = ["model", "models.${model}.chat_template", "models.${model}.path", "models.${model}.revision"]
ROWS_PER_UPDATE = 1000


def main(arguments: argparse.Namespace, out: TextIO) -> None:
    sources = [source_of(given, arguments) for given in arguments.sources]
    require_free(arguments.out, sources, arguments.overwrite)
    conversion = Conversion(arguments.to)
    unfinished = arguments.out.with_name(arguments.out.name + ".unfinished")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with unfinished.open("wb", buffering=2**20) as file:
            write_all(file, conversion, sources, arguments)
        if conversion.written:
            os.replace(unfinished, arguments.out)
    finally:
        unfinished.unlink(missing_ok=True)
    report(conversion, arguments, out)
    if not conversion.written:
        raise InputError("no row could be converted, so nothing was written; see the reasons above, and --map")
    write_line(out, next_steps(arguments))


def source_of(given: str, arguments: argparse.Namespace) -> Source:
    columns = {}
    for entry in arguments.map:
        key, _, column = entry.partition("=")
        if not key or not column:
            raise InputError(f"--map {entry}: write KEY=COLUMN, for example --map instruction=question")
        columns[column] = key
    source = Source(given, given, arguments.split, columns)
    if Path(given).is_dir() and is_listing(Path(given) / "dataset_info.json") and (Path(given) / "dataset_info.json").exists():
        source = source._replace(path=str(Path(given) / "dataset_info.json"))
    return listed_source(source, arguments.dataset) if is_listing(Path(source.path)) else source


def require_free(path: Path, sources: list[Source], overwrite: bool) -> None:
    if any(path.resolve() == Path(source.path).resolve() for source in sources):
        raise InputError(f"{path} is a source; write the result to another file")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; choose another --out, or replace it with --overwrite")


def write_all(file: BinaryIO, conversion: Conversion, sources: list[Source], arguments: argparse.Namespace) -> None:
    """Writes the converted rows: the first `limit`, or after a shuffle a random sample of as many."""
    if arguments.shuffle_seed is None:
        for written, line in enumerate(converted(conversion, sources), start=1):
            file.write(line)
            if written == arguments.limit:
                return
        return
    with tempfile.TemporaryFile(dir=arguments.out.parent) as rows:
        starts = array("Q")
        for line in converted(conversion, sources):
            starts.append(rows.tell())
            rows.write(line)
        random.Random(arguments.shuffle_seed).shuffle(starts)
        for start in starts[: arguments.limit]:
            rows.seek(start)
            file.write(rows.readline())


def converted(conversion: Conversion, sources: list[Source]) -> Iterator[bytes]:
    with bar("convert", None, "row") as progress:
        for source in sources:
            for number, row in rows_of(source):
                yield from conversion.lines(source, number, row)
                if conversion.given % ROWS_PER_UPDATE == 0:
                    progress.update(ROWS_PER_UPDATE)
        progress.update(conversion.given % ROWS_PER_UPDATE)


# ---- What it says ------------------------------------------------------------------------------------------------------


def report(conversion: Conversion, arguments: argparse.Namespace, out: TextIO) -> None:
    written = min(conversion.written, arguments.limit or conversion.written)
    left_out = sum(entry.count for entry in conversion.left_out.values())
    for line in [
        *(f"layout: {name}: {count:,} rows" for name, count in conversion.layouts.most_common()),
        f"rows in: {conversion.given:,}; left out: {left_out:,}; rows out: {written:,} ({arguments.to})",
        *(f"changed: {note}: {count:,} rows" for note, count in conversion.notes.items()),
        *(f"not used: `{printable(key)}` in {count:,} rows" for key, count in conversion.unused.most_common(20)),
    ]:
        write_line(out, line)
    if conversion.left_out:
        rows = [[kind, f"{entry.count:,}", entry.place, printable(entry.reason)] for kind, entry in ledger(conversion)]
        for line in table(["left out", "rows", "the first", "why"], rows).splitlines():
            write_line(out, line)
    for line in samples(conversion, arguments.to, out):
        write_line(out, line)


def ledger(conversion: Conversion) -> list:
    return sorted(conversion.left_out.items(), key=lambda item: -item[1].count)


def samples(conversion: Conversion, target: str, out: TextIO) -> Iterator[str]:
    """The first rows as they will be trained on, rendered for the model that params.yaml chooses."""
    if not conversion.samples:
        return
    try:
        params = parameters.load(PARAMS)
        entry = params.model_entry
        chat = Chat.load(model_folder(entry.path, entry.revision, TOKENIZER_FILES), entry.chat_template)
    except InputError as error:
        yield f"no samples: the rows cannot be rendered: {error}"
        return
    for number, row in enumerate(conversion.samples[:SHOWN], start=1):
        yield f"---- sample {number} ({row['id']}), as the model {params.model} sees it"
        yield from sample(row, target, chat, out.isatty()).split("\n")


def next_steps(arguments: argparse.Namespace) -> str:
    use = {
        "sft": "prepare.sft", "pairs": "prepare.pairs", "eval": "prepare.eval", "unpaired": "a method that reads labels (KTO)"
    }[arguments.to]  # fmt: skip
    out = arguments.out
    return f"{out}: check it: python src/prepare.py --check {out}   use it: {use}   share it: dvc add {out}"


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return int(text)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("sources", nargs="+", metavar="SOURCE", help="files, folders, or owner/name on the hub")
    made.add_argument("--to", required=True, choices=TARGETS, help="what the rows become")
    made.add_argument("--out", required=True, type=Path, metavar="FILE", help="the JSON lines to write")
    made.add_argument("--map", action="append", default=[], metavar="KEY=COLUMN", help="read a key of a layout from a column")
    made.add_argument("--dataset", metavar="NAME", help="the entry of a dataset_info.json")
    made.add_argument("--split", help="the split of a data set (default: train)")
    made.add_argument("--limit", type=positive, metavar="N", help="write at most N rows")
    made.add_argument("--shuffle-seed", type=int, metavar="SEED", help="shuffle all rows, before --limit")
    made.add_argument("--overwrite", action="store_true", help="replace OUT")
    return made


if __name__ == "__main__":
    try:
        main(parser().parse_args(), sys.stdout)
    except InputError as error:
        raise SystemExit(f"convert: {error}") from None
    except BrokenPipeError:  # `| head`; the rows are written before anything is said
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        raise SystemExit("convert: interrupted; nothing was written") from None
