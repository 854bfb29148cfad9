"""run/imports.py: which files a script depends on, read from its source, for dvc.yaml and for the fingerprint of a checkpoint."""

import pytest

from aligner.run.imports import code_of, first_party, imported_names

DOCSTRING = '"""In: rows. Out: figures."""\n'


@pytest.fixture
def source(tmp_path):
    """Writes files below a folder of sources and returns the folder."""

    def write(**files):
        for name, text in files.items():
            path = tmp_path / (name.replace("__", "/") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        for folder in {path.parent for path in tmp_path.rglob("*.py")} - {tmp_path}:
            (folder / "__init__.py").touch()
        return tmp_path

    return write


def names(source, paths):
    return {path.relative_to(source).as_posix() for path in paths}


def test_imports_inside_functions_and_branches_count(source):
    folder = source(
        stage="def main():\n    if True:\n        from room.one import f\n",
        room__one="def f():\n    import room.two\n",
        room__two="",
    )
    assert names(folder, first_party(folder / "stage.py", folder)) >= {"stage.py", "room/one.py", "room/two.py"}


def test_packages_on_the_way_count_and_so_does_what_they_import(source):
    folder = source(stage="import house.room.one\n", house__room__one="", other="")
    (folder / "house/__init__.py").write_text("import other\n", encoding="utf-8")
    found = names(folder, first_party(folder / "stage.py", folder))
    assert found == {"stage.py", "house/__init__.py", "house/room/__init__.py", "house/room/one.py", "other.py"}


def test_a_module_that_is_imported_from_its_package_counts(source):
    """`from room import one` is the module `room.one`, whatever it is called here."""
    folder = source(stage="from room import one as first\n", room__one="", room__two="")
    assert "room/one.py" in names(folder, first_party(folder / "stage.py", folder))
    assert "room/two.py" not in names(folder, first_party(folder / "stage.py", folder))


def test_modules_that_import_each_other_are_found_once(source):
    folder = source(stage="import room.one\n", room__one="import room.two\n", room__two="import room.one\nimport json\n")
    found = names(folder, first_party(folder / "stage.py", folder))
    assert found == {"stage.py", "room/__init__.py", "room/one.py", "room/two.py"}


def test_code_of_leaves_out_run_and_packages_without_code(source):
    stage = "import aligner.run.record\nimport aligner.room.one\nimport aligner.full.two\n"
    folder = source(
        stage=stage,
        aligner__run__record="import aligner.files\n",
        aligner__files="",
        aligner__room__one="",
        aligner__full__two="",
    )
    (folder / "aligner/room/__init__.py").write_text(DOCSTRING, encoding="utf-8")
    (folder / "aligner/full/__init__.py").write_text(DOCSTRING + "VALUE = 1\n", encoding="utf-8")
    found = code_of(folder / "stage.py", folder)
    assert found == sorted(found)
    assert names(folder, found) == {
        "stage.py",
        "aligner/files.py",
        "aligner/room/one.py",
        "aligner/full/__init__.py",
        "aligner/full/two.py",
    }


@pytest.mark.parametrize("line", ["from . import one", "from .one import f", "from .. import room"])
def test_a_relative_import_is_refused_with_its_place(source, line):
    folder = source(stage="", room__two=f"import json\n{line}\n")
    with pytest.raises(ValueError, match=r"two\.py:2: a relative import; write it in full"):
        list(imported_names(folder / "room/two.py"))
