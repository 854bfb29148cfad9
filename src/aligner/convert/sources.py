"""Rows of any source: JSON lines, a JSON array, CSV, Parquet, Arrow (also compressed), a folder, a dataset of the hub.

Every source is read as a stream. JSON is read here and not by `datasets`: Arrow gives a whole file one schema, which adds nulls
to rows and refuses a text beside a list of parts, and it holds an array in memory as a whole. CSV is read here since `datasets`
makes numbers of texts. Parquet is read by Arrow itself, a batch of rows at a time: `datasets` reads ahead, which took 1.3 GB for
a file of a million rows. `datasets` reads Arrow files, saved folders and the hub.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import csv
import gzip
import io
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from aligner.data.lines import MAX_LINE_BYTES, UTF8_BOM, BadRow, json_type, next_line, parse_object
from aligner.data.other_files import SIGNATURES, file_type, head_of
from aligner.run.errors import InputError
from aligner.run.terminal import printable

OPENERS: dict[str, Any] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
DATA_SUFFIXES = (".json", ".jsonl", ".parquet", ".csv", ".tsv", ".arrow")
CHUNK = 2**20
ROWS_AT_ONCE = 1000


class Source(NamedTuple):
    """One file or data set: its name for messages, and new names of columns, `{column: key}`."""

    name: str
    path: str
    split: str | None
    columns: dict[str, str]
    tags: dict[str, str] = {}


Given = tuple[int, dict[str, Any] | BadRow]  # the number of a row in its source, and the row, or why it cannot be read


def rows_of(source: Source) -> Iterator[Given]:
    """Yields every row of a source. InputError if the source as a whole cannot be read."""
    path = Path(source.path)
    if not path.exists():
        yield from _numbered(_hub_rows(source))
        return
    kind = file_type(path)
    if kind in ("folder saved by datasets", "folder"):
        yield from _folder_rows(source, path)
    elif kind == "Parquet":
        yield from _numbered(_parquet_rows(path))
    elif kind == "Arrow":
        yield from _numbered(_arrow_rows(path))
    else:
        yield from _text_rows(source, path, kind)


def _text_rows(source: Source, path: Path, kind: str) -> Iterator[Given]:
    """Rows of a file of text: JSON or CSV, compressed or not."""
    opener = OPENERS.get(next((kind for start, kind in SIGNATURES.items() if head_of(path).startswith(start)), ""), open)
    try:
        with opener(path, "rb") as file:
            yield from csv_rows(file, path) if kind == "CSV" else json_rows(file, source.name)
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{printable(source.name)} cannot be read: {error}") from None


def _numbered(rows: Iterator[dict]) -> Iterator[Given]:
    return enumerate(rows, start=1)


# ---- JSON ------------------------------------------------------------------------------------------------------------


def json_rows(file: BinaryIO, name: str) -> Iterator[Given]:
    """The rows of JSON lines or of one JSON array, whichever the first character says."""
    start = file.read(CHUNK)
    text = start.removeprefix(UTF8_BOM).lstrip()
    file.seek(0)
    if text.startswith(b"["):
        yield from _array_rows(file, name)
        return
    first = True
    for line, raw in enumerate(iter(lambda: next_line(file), b""), start=1):
        raw = raw.removeprefix(UTF8_BOM) if first and raw else raw
        first = False
        try:
            if raw is None:
                raise BadRow("oversized_line", f"longer than {MAX_LINE_BYTES // 2**20} MiB")
            if not raw.isspace():
                yield line, _object(raw)
        except BadRow as bad:
            yield line, bad


def _object(raw: bytes) -> dict:
    try:
        return parse_object(raw.decode())
    except UnicodeDecodeError as error:
        raise BadRow("not_utf8", f"no UTF-8 at column {error.start + 1}") from None


def _array_rows(file: BinaryIO, name: str) -> Iterator[Given]:
    """The elements of a JSON array, of which only one chunk and one element are in memory."""
    decode, scan = codecs.getincrementaldecoder("utf-8-sig")().decode, json.JSONDecoder().raw_decode
    number, text, place, ended = 0, "", 0, False
    try:
        text = decode(file.read(CHUNK)).lstrip()[1:]
        while True:
            place = _after_space(text, place)
            if text[place : place + 1] == "]":
                return
            try:
                value, end = scan(text, place)
                if not ended and end >= len(text) - 1:
                    raise json.JSONDecodeError("the element may go on", text, end)
            except json.JSONDecodeError as fault:
                more = file.read(CHUNK)
                if (not more and ended) or len(text) - place > MAX_LINE_BYTES:
                    raise InputError(f"{printable(name)}: no JSON array: row {number + 1}: {fault.msg}") from None
                text, place, ended = text[place:] + decode(more, final=not more), 0, not more
                continue
            number, place = number + 1, end
            if type(value) is dict:
                yield number, value
            else:
                yield number, BadRow("not_an_object", f"a row must be an object, not {json_type(value)}")
    except UnicodeDecodeError:
        raise InputError(f"{printable(name)} is not UTF-8; convert it first (iconv -t UTF-8)") from None
    except RecursionError:
        raise InputError(f"{printable(name)}: row {number + 1} has too many nested brackets") from None


def _after_space(text: str, place: int) -> int:
    """The place of the next character that is neither white space nor a comma between elements."""
    while text[place : place + 1] in {" ", "\n", "\r", "\t", ","}:
        place += 1
    return place


def csv_rows(file: BinaryIO, path: Path) -> Iterator[Given]:
    """The rows of a CSV or TSV file with a line of column names. All cells are texts, and empty ones count as missing.

    `datasets` would make numbers of "1" and nothing of "NA", which both may be answers.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    for number, row in enumerate(csv.DictReader(text, delimiter="\t" if ".tsv" in path.suffixes else ","), start=1):
        if None in row or None in row.values():
            yield number, BadRow("other_columns", "the line has more or fewer cells than there are columns")
        else:
            yield number, {key: value for key, value in row.items() if value}


def _parquet_rows(path: Path) -> Iterator[dict]:
    """Rows of a Parquet file. Of each column one page is in memory, also where the whole file is one row group."""
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path, buffer_size=CHUNK, pre_buffer=False) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE, use_threads=False):
                yield from batch.to_pylist()
    except (OSError, ValueError, RuntimeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"{printable(str(path))} cannot be read: {reason}") from None


# ---- Everything else, by datasets ----------------------------------------------------------------------------------------


def _arrow_rows(path: Path) -> Iterator[dict]:
    from datasets import load_dataset

    with readable(str(path)):
        yield from _batches(load_dataset("arrow", data_files=str(path), split="train", streaming=True))


def _folder_rows(source: Source, path: Path) -> Iterator[Given]:
    from datasets import DatasetDict, load_from_disk

    if file_type(path) == "folder saved by datasets":
        with readable(source.name):
            loaded = load_from_disk(str(path))
            if isinstance(loaded, DatasetDict):
                loaded = loaded[chosen_split(list(loaded), source)]
            yield from _numbered(_batches(loaded))
        return
    files = sorted(file for file in path.iterdir() if set(file.suffixes) & set(DATA_SUFFIXES))
    if source.split:
        files = [file for file in files if file.name.startswith(source.split)]
    if not files:
        raise InputError(f"{printable(source.name)} holds no data file ({', '.join(DATA_SUFFIXES)}; compressed or not)")
    number = 0
    for file in files:
        for _, row in rows_of(source._replace(path=str(file), split=None)):
            number += 1
            yield number, row


def chosen_split(splits: list[str], source: Source) -> str:
    if source.split in splits:
        return str(source.split)
    if source.split is None and (len(splits) == 1 or "train" in splits):
        return splits[0] if len(splits) == 1 else "train"
    raise InputError(f"{printable(source.name)} has the splits {', '.join(splits)}; choose one: --split {splits[0]}")


def _hub_rows(source: Source) -> Iterator[dict]:
    """Rows of a dataset of the Hugging Face hub, `owner/name`. Code of a dataset repository is never run."""
    from datasets import load_dataset

    if source.path.count("/") != 1 or source.path.startswith((".", "/", "data/")) or Path(source.path).suffix in DATA_SUFFIXES:
        raise InputError(f"there is no file or folder {printable(source.path)}; check the path")
    with readable(source.name):
        yield from _batches(load_dataset(source.path, split=source.split or "train", streaming=True))


def _batches(loaded: Any) -> Iterator[dict]:
    for table in loaded.with_format("arrow").iter(batch_size=ROWS_AT_ONCE):
        yield from table.to_pylist()


@contextlib.contextmanager
def readable(name: str) -> Iterator[None]:
    """Turns the errors of `datasets` and Arrow about a file or a data set into one InputError."""
    from datasets import exceptions, utils

    utils.logging.set_verbosity(utils.logging.CRITICAL)  # the error says the same
    try:
        yield
    except InputError:
        raise
    except (exceptions.DatasetsError, OSError, ValueError, LookupError, RuntimeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"{printable(name)} cannot be read: {reason}") from None


# ---- LLaMA-Factory's dataset_info.json -----------------------------------------------------------------------------------

COLUMNS = {  # LLaMA-Factory's name of a column -> our key
    "prompt": "instruction", "query": "input", "response": "output", "history": "history", "system": "system",
    "messages": "conversations", "chosen": "chosen", "rejected": "rejected", "kto_tag": "kto_tag", "tools": "tools",
}  # fmt: skip


def listed_source(source: Source, name: str | None) -> Source:
    """The source that an entry of a dataset_info.json describes: its file or hub name, its columns and its role names."""
    path = Path(source.path)
    entries = json.loads(path.read_text(encoding="utf-8"))
    if name is None and len(entries) == 1:
        name = next(iter(entries))
    if name not in entries:
        raise InputError(f"{printable(source.name)} lists {', '.join(entries)}; choose one: --dataset {next(iter(entries))}")
    entry = entries[name]
    where = entry.get("file_name") and str(path.parent / entry["file_name"]) or entry.get("hf_hub_url")
    if not where:
        raise InputError(f"{printable(source.name)}: {name} names no file_name and no hf_hub_url")
    columns = {column: COLUMNS[key] for key, column in entry.get("columns", {}).items() if key in COLUMNS}
    return Source(f"{name} ({source.name})", where, source.split or entry.get("split"), columns | source.columns, tags_of(entry))


def tags_of(entry: dict) -> dict[str, str]:
    """The keys and roles of a turn that differ from the usual ones, `{written: usual}`."""
    usual = {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    }
    return {written: usual[tag] for tag, written in entry.get("tags", {}).items() if tag in usual}


def is_listing(path: Path) -> bool:
    """Whether a file is LLaMA-Factory's list of data sets, and not the file of this name that `datasets` saves."""
    return path.name == "dataset_info.json" and not (path.parent / "state.json").exists()
