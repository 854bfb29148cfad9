"""dvc.yaml, pipelines/dvc.yaml and the sources for the tests: expanded stages, and the modules that a script imports."""

import ast
import functools
import re
from pathlib import Path

from ruamel.yaml import YAML

from aligner.run.imports import code_of

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ["prepare", "sft", "dpo", "generate", "score"]
# Those of pipelines/dvc.yaml, which uses generate too.
METHOD_SCRIPTS = ["unpaired", "kto", "orpo", "reward", "best_of_n", "grpo", "league"]
METHODS = "pipelines/dvc.yaml"


def read_yaml(path):
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


PARAMS = read_yaml(ROOT / "params.yaml")
PIPELINE = read_yaml(ROOT / "dvc.yaml")
METHODS_PIPELINE = read_yaml(ROOT / METHODS)
BASE_PIPELINE = read_yaml(ROOT / "models/base/dvc.yaml")


def filled_in(text, names):
    """A string of dvc.yaml with each `${…}` replaced, as DVC does."""
    return re.sub(r"\$\{([\w.]+)\}", lambda found: functools.reduce(lambda at, key: at[key], found[1].split("."), names), text)


def expanded(spec):
    """(name, stage) of each stage as it runs: one per item of a foreach, with `${…}` left only in params."""
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
METHOD_STAGES = dict(expanded(METHODS_PIPELINE))
ALL_STAGES = {**STAGES, **METHOD_STAGES}


def declared(stage, *kinds):
    """The paths in a stage's deps, outs, metrics or plots."""
    return {
        path
        for kind in kinds
        for entry in ALL_STAGES[stage].get(kind, [])
        for path in ([entry] if isinstance(entry, str) else entry)
    }


def plots(spec, folder):
    """(path, settings) of every plot of a dvc.yaml in `folder`."""
    for _, stage in expanded(spec):
        for entry in stage.get("plots", []):
            for path, settings in entry.items():
                yield folder / path, settings


PLOTS = dict(plots(PIPELINE, Path())) | dict(plots(METHODS_PIPELINE, Path()))
BASE_PLOTS = dict(plots(BASE_PIPELINE, Path("models/base")))


# ---- Reading the code -----------------------------------------------------------------------------------------------


def names_imported_at_the_top(path):
    """Full names of what a file imports outside of functions: `from a import b` counts as both `a` and `a.b`."""
    for node in nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def nodes(node):
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not is_for_types(child):
            yield from nodes(child)


def is_for_types(node):
    """Whether it is `if TYPE_CHECKING:`, which no run enters."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def code(script):
    """The code that a script's outputs depend on, as in dvc.yaml: modules, and the files beside them."""
    modules = code_of(ROOT / "src" / f"{script}.py")
    return {path.relative_to(ROOT).as_posix() for module in modules for path in {module} | parts(module)}


def sources():
    return sorted((ROOT / "src").rglob("*.py"))


def parts(module):
    """The files with a module's name beside it: page.html, page.css and page.js beside page.py."""
    return {path for path in module.parent.glob(f"{module.stem}.*") if path.suffix != ".py"}
