"""Fixtures of the tests of aligner.data."""

import pytest
from support.data_lines import as_bytes

from aligner.data.reader import read_rows


@pytest.fixture
def rows_of(tmp_path):
    """Writes lines (objects become JSON) to a file and reads it back as rows."""

    def read(*lines, kind=None, end=b"\n"):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b"".join(as_bytes(line) + end for line in lines))
        return list(read_rows(path, kind))

    return read
