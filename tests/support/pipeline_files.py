"""dvc.yaml and the sources as the tests read them: stages as they will run, and which files of ours a script imports."""

import ast
import functools
import re
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ["prepare", "sft", "dpo", "generate", "score"]
# No dep of any stage: they hold no value and write no output (what they check or record changes no result).
NO_DEPS = {"src/aligner/__init__.py", "src/aligner/params.py", "src/aligner/records.py"}


def read_yaml(path):
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


PARAMS = read_yaml(ROOT / "params.yaml")
PIPELINE = read_yaml(ROOT / "dvc.yaml")
BASE_PIPELINE = read_yaml(ROOT / "models/base/dvc.yaml")


def filled_in(text, names):
    """A string of dvc.yaml with each `${…}` replaced, as DVC does."""
    return re.sub(r"\$\{([\w.]+)\}", lambda found: functools.reduce(lambda at, key: at[key], found[1].split("."), names), text)


def expanded(spec):
    """(name, stage) of every stage as it will run: one for each item of a foreach, and no `${…}` left but in params."""
    for name, stage in spec["stages"].items():
        items = stage.get("foreach")
        for key, item in items.items() if items else [(None, None)]:
            names = {**PARAMS, "key": key, "item": item}
            yield (f"{name}@{key}" if items else name), fill(stage["do"] if items else stage, names)


def fill(value, names):
    if isinstance(value, dict):
        return {fill(key, names): fill(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [fill(item, names) for item in value]
    return filled_in(value, names) if isinstance(value, str) else value


STAGES = dict(expanded(PIPELINE))


def declared(stage, *kinds):
    """The paths that stand under deps, outs, metrics or plots of a stage."""
    return {
        path for kind in kinds for entry in STAGES[stage].get(kind, []) for path in ([entry] if isinstance(entry, str) else entry)
    }


def plots(spec, folder):
    """(path, settings) of every plot of a dvc.yaml in `folder`."""
    for _, stage in expanded(spec):
        for entry in stage.get("plots", []):
            for path, settings in entry.items():
                yield folder / path, settings


PLOTS = dict(plots(PIPELINE, Path()))
BASE_PLOTS = dict(plots(BASE_PIPELINE, Path("models/base")))


# ---- Reading the code -----------------------------------------------------------------------------------------------


def imported_names(path, inside_functions=True):
    """Full names of what a file imports: `from a import b` counts as both `a` and `a.b`."""
    for node in nodes(ast.parse(path.read_text(encoding="utf-8")), inside_functions):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import, which this walk does not follow"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def nodes(node, inside_functions):
    yield node
    for child in ast.iter_child_nodes(node):
        if inside_functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from nodes(child, inside_functions)


def own_file(name, source):
    """The file of a module of ours, or None; packages count with their __init__.py."""
    path = source / name.replace(".", "/")
    return next((found for found in (path.with_suffix(".py"), path / "__init__.py") if found.is_file()), None)


def first_party(script, source):
    """Every file of ours that a script imports, by itself or through another, the script included."""
    found, waiting = set(), [script]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += filter(None, (own_file(name, source) for name in imported_names(path)))
    return found


def sources():
    return sorted((ROOT / "src").rglob("*.py"))


def parts(module):
    """What a module shows stands beside it under its name: page.html, page.css and page.js beside page.py."""
    return {path for path in module.parent.glob(f"{module.stem}.*") if path.suffix != ".py"}
