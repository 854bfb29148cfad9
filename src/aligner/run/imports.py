"""Finds the files of this repository that a script imports, and on which its outputs therefore depend.

DVC follows no imports. tools/deps.py writes the `deps` of dvc.yaml from this walk, a test compares the two, and a checkpoint's
fingerprint covers the same files.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
RUN_ROOM = "aligner/run"  # parameters, records, signals and messages; they change no output


def code_of(script: Path, source: Path = SOURCE) -> list[Path]:
    """The files that determine what a script writes, sorted, itself included; without `run/` and packages without code."""
    found = first_party(script, source)
    return sorted(path for path in found if not path.is_relative_to(source / RUN_ROOM) and not _is_bare_package(path))


def first_party(script: Path, source: Path = SOURCE) -> set[Path]:
    """Every file below `source` that a script imports, directly or indirectly, and the script itself.

    This includes imports inside functions, and the packages that contain a module, since Python runs them first.
    """
    found: set[Path] = set()
    waiting = [script]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += [file for name in imported_names(path) for file in _files_of(name, source)]
    return found


def imported_names(path: Path) -> Iterator[str]:
    """The full names that a file imports; `from a import b` yields `a` and `a.b`. ValueError for a relative import."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise ValueError(f"{path}:{node.lineno}: a relative import; write it in full, since this walk does not follow it")
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files_of(name: str, source: Path) -> Iterator[Path]:
    """The files that an import of `name` runs: each enclosing package, and the module."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        path = source.joinpath(*parts[:end])
        yield from (file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file())


def _is_bare_package(path: Path) -> bool:
    """Whether a file is an `__init__.py` that holds at most a docstring."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return path.name == "__init__.py" and all(isinstance(node, ast.Expr) for node in body)
