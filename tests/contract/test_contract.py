"""The two dvc.yaml and the code agree: imports and deps, parameters, paths, plots, metrics, and files that Git ignores.

DVC follows no imports and reads no constants, so these tests compare the two: they read the scripts, and they run the stages on
a tiny model and record each file that a stage opens.
"""

import csv
import importlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pathspec
import pytest
from support import finished
from support.pipeline_files import (
    ALL_STAGES,
    BASE_PIPELINE,
    BASE_PLOTS,
    METHOD_SCRIPTS,
    METHOD_STAGES,
    METHODS,
    METHODS_PIPELINE,
    PARAMS,
    PIPELINE,
    PLOTS,
    ROOT,
    SCRIPTS,
    STAGES,
    code,
    declared,
    expanded,
    names_imported_at_the_top,
    parts,
    read_yaml,
    sources,
)
from support.workspace import RAW

import deps
from aligner.run.imports import code_of, first_party, imported_names

BASE = "models/base/weights"
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "scipy"}
# Scripts that are not stages: people run them on results.
SIDE_SCRIPTS = {"chat", "convert", "export", "judge", "runs", "votes"}
# Files that a stage reads without a dep of its own: an adapter names the base that it belongs to, and the stage compares.
BY_PROVENANCE = {stage: {BASE} for stage in ALL_STAGES if stage.startswith("generate@")}
# Read for rows of one's own only (unpaired.rows), not for the pairs of prepare.
SOMETIMES = {"unpaired": {BASE, "data/prepared/chat.json", "data/prepared/references.jsonl"}}


def data_deps(stage):
    """The deps that a stage reads as data; only score and the league read the pins, which they show."""
    unread = set() if stage in ("score", "league") else {"requirements.txt"}
    return {path for path in declared(stage, "deps") if not path.startswith("src/")} - unread


def paths_in(value):
    """Paths in a constant, at any depth of dictionaries, lists and tuples."""
    if isinstance(value, Path):
        yield value.as_posix()
    elif isinstance(value, dict):
        for pair in value.items():
            yield from paths_in(pair)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from paths_in(item)


def constant_paths(script):
    """Paths of the pipeline in the constants of a script and of the modules that it imports."""
    modules = [path.relative_to(ROOT / "src").with_suffix("") for path in code_of(ROOT / "src" / f"{script}.py")]
    constants = [vars(importlib.import_module(".".join(module.parts))) for module in modules if module.name != "__init__"]
    found = {path for names in constants for path in paths_in([value for name, value in names.items() if name.isupper()])}
    return {path for path in found if path.split("/")[0] in ("data", "metrics", "models", "plots", "reports", "requirements.txt")}


# Constants of modules of which a script uses other parts.
UNREAD = {"best_of_n": {"models", *(f"data/generated/{model}.jsonl" for model in ("base", "sft", "dpo"))}}
OF_METHODS = [(each, METHODS_PIPELINE) for each in [*METHOD_SCRIPTS, "generate"]]


def str_or_none(value):
    return value if isinstance(value, str) else f"of {len(value['stages'])} stages"


# ---- dvc.yaml against the scripts -----------------------------------------------------------------------------------


def test_the_five_stages_are_the_five_scripts():
    assert list(PIPELINE["stages"]) == SCRIPTS
    assert set(METHODS_PIPELINE["stages"]) == {*METHOD_SCRIPTS, "generate"}
    assert {path.stem for path in (ROOT / "src").glob("*.py")} == {*SCRIPTS, *METHOD_SCRIPTS} | SIDE_SCRIPTS
    for stage, spec in ALL_STAGES.items():
        script, _, argument = stage.partition("@")
        assert spec["cmd"] == f"python src/{script}.py {argument}".strip()


def test_methods_run_in_the_root_and_have_names_of_their_own():
    """So root params.yaml and `-S` work for them, and no output or metric belongs to two stages."""
    assert {spec["wdir"] for spec in METHOD_STAGES.values()} == {".."}
    assert not set(STAGES) & set(METHOD_STAGES)
    outs = [path for stage in ALL_STAGES for path in declared(stage, "outs", "metrics", "plots")]
    assert len(set(outs)) == len(outs)


def test_the_league_reads_the_answers_and_reports_of_its_models():
    deps, models = declared("league", "deps"), PARAMS["league"]["models"]
    assert {path for path in deps if path.startswith("data/generated/")} == {f"data/generated/{name}.jsonl" for name in models}
    assert {path for path in deps if path.startswith("reports/")} == {f"reports/{name}.json" for name in models if name != "base"}


@pytest.mark.parametrize("stage", ALL_STAGES)
def test_deps_are_exactly_the_modules_that_the_script_imports(stage):
    assert {path for path in declared(stage, "deps") if path.startswith("src/")} == code(stage.partition("@")[0])


@pytest.mark.parametrize("pipeline", ["dvc.yaml", METHODS])
def test_deps_are_as_their_program_writes_them(pipeline):
    text = (ROOT / pipeline).read_text(encoding="utf-8")
    assert deps.with_deps(text, ROOT) == text, "run: PYTHONPATH=src python tools/deps.py"
    without = "".join(line for line in text.splitlines(keepends=True) if not line.endswith("src/aligner/files.py\n"))
    assert without != text and deps.with_deps(without, ROOT) == text


def test_every_file_of_the_sources_is_a_module_or_a_part_of_one():
    files = {path for path in (ROOT / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert files == {file for module in sources() for file in {module} | parts(module)}


def test_the_walk_sees_imports_of_every_kind(tmp_path):
    """Inside a function, under another name, of a package, and through another module."""
    package = tmp_path / "house"
    package.mkdir()
    for name, text in {
        "__init__.py": "",
        "one.py": "def f():\n    from house.two import g\n",
        "two.py": "import json\n",
        "three.py": "",
    }.items():
        (package / name).write_text(text, encoding="utf-8")
    (tmp_path / "script.py").write_text("from house import one as first\nimport house.three\n", encoding="utf-8")
    found = first_party(tmp_path / "script.py", tmp_path)
    assert {path.name for path in found} == {"script.py", "__init__.py", "one.py", "two.py", "three.py"}


HIDING = re.compile(r"import_module|__import__|runpy|sys\.path")
# This package looks its names up when they are used, for people who write `from aligner.keywords import hits`.
LAZY = "aligner.keywords"


def test_no_import_hides_from_the_walk():
    hiding = {path for path in sources() if HIDING.search(path.read_text(encoding="utf-8"))}
    assert hiding == {ROOT / "src" / LAZY.replace(".", "/") / "__init__.py"}


def test_no_module_imports_a_name_that_is_looked_up_late():
    """The walk would not see the module that the name comes from."""
    late = {f"{LAZY}.{name}" for name in importlib.import_module(LAZY)._HOME}
    assert {name: path for path in sources() for name in imported_names(path) if name in late} == {}


def test_modules_outside_the_deps_hold_no_value_of_a_result():
    """run/ is exempt from deps, and no stage lists it."""
    assert not {path for stage in ALL_STAGES for path in declared(stage, "deps") if path.startswith("src/aligner/run/")}


@pytest.mark.parametrize(("script", "pipeline"), [*((each, PIPELINE) for each in SCRIPTS), *OF_METHODS], ids=str_or_none)
def test_params_are_those_that_the_script_declares(script, pipeline):
    spec = pipeline["stages"][script]
    listed = spec.get("do", spec)["params"]
    assert sorted(importlib.import_module(script).PARAMS) == sorted(listed)
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("script", [*SCRIPTS, *METHOD_SCRIPTS])
def test_paths_are_those_of_the_script_s_constants(script):
    """Every declared path is a constant or a file of a constant folder, and every constant is declared or such a folder."""
    stages = [stage for stage in ALL_STAGES if stage.partition("@")[0] == script]
    listed = {path for stage in stages for path in data_deps(stage) | declared(stage, "outs", "metrics", "plots")}
    listed -= {BASE, PARAMS["grpo"]["prompts"]}  # these are in params.yaml
    listed -= {PARAMS["prepare"][kind] for kind in RAW} if script == "prepare" else set()
    constants = constant_paths(script) - UNREAD.get(script, set())
    folders = constants - listed
    assert {path for path in listed - constants if str(Path(path).parent) not in folders} == set()
    assert folders <= {str(Path(path).parent) for path in listed}


def test_the_base_of_the_default_model_is_a_dep_of_what_loads_it():
    assert PARAMS["models"][PARAMS["model"]]["path"] == BASE
    loaders = {"prepare", "sft", "dpo", "generate@base", "unpaired", "kto", "orpo", "reward", "best_of_n", "grpo"}
    assert {stage for stage in ALL_STAGES if BASE in declared(stage, "deps")} == loaders


def test_the_raw_files_are_deps_of_prepare_wherever_params_say_they_are():
    assert {f"${{prepare.{kind}}}" for kind in RAW} < set(PIPELINE["stages"]["prepare"]["deps"])
    assert all((ROOT / PARAMS["prepare"][kind]).is_file() for kind in RAW)


def test_new_requirements_rerun_every_stage():
    assert {stage for stage in ALL_STAGES if "requirements.txt" not in declared(stage, "deps")} == set()
    assert (ROOT / "requirements.txt").is_file()


def test_every_stage_says_what_it_does():
    for stage, spec in [*ALL_STAGES.items(), *expanded(BASE_PIPELINE)]:
        assert len(spec["desc"]) > 20, stage


def test_lists_are_sorted_so_that_a_difference_is_seen():
    for stage, spec in [*PIPELINE["stages"].items(), *METHODS_PIPELINE["stages"].items()]:
        for kind in ("deps", "params", "outs"):
            listed = [
                path for entry in spec.get("do", spec).get(kind, []) for path in ([entry] if isinstance(entry, str) else entry)
            ]
            assert listed == sorted(listed), f"{stage}: {kind}"


def test_the_recipe_of_the_base_has_its_imports_and_parameters_as_deps():
    folder = ROOT / "models/base"
    stage = BASE_PIPELINE["stages"]["pretrain"]
    assert {f"{path.stem}.py" for path in first_party(folder / "pretrain.py", folder)} < set(stage["deps"])
    assert {path for path in stage["deps"] if path.endswith(".py")} == {"corpus.py", "muon.py", "pretrain.py"}
    assert stage["params"] == list(read_yaml(folder / "params.yaml"))


# ---- Files that the stages read and write --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def traces():
    """The files that each stage read and made when all stages ran on a tiny model."""
    return finished.traces() | finished.traces_of_methods()


@pytest.fixture(scope="module")
def ran():
    """The folder in which they ran; read-only."""
    return finished.with_methods()


def covers(path, file):
    return file == path or file.startswith(f"{path}/")


@pytest.mark.parametrize("stage", ALL_STAGES)
def test_a_stage_reads_its_deps_and_nothing_else(traces, stage):
    read = traces[stage].read - traces[stage].made  # a stage may read what it has just written
    deps = data_deps(stage)
    assert {file for file in read if not any(covers(path, file) for path in deps | BY_PROVENANCE.get(stage, set()))} == set()
    assert {path for path in deps if not any(covers(path, file) for file in read)} == SOMETIMES.get(stage, set())


@pytest.mark.parametrize("stage", ALL_STAGES)
def test_a_stage_writes_what_it_declares_and_nothing_else(traces, stage):
    made = traces[stage].made
    listed = declared(stage, "outs", "metrics", "plots")
    assert {file for file in made if not any(covers(path, file) for path in listed)} == set()
    assert {path for path in listed if not any(covers(path, file) for file in made)} == set()


# ---- Outputs, metrics and plots -------------------------------------------------------------------------------------


def test_metrics_and_plots_live_in_git_and_outs_in_the_cache():
    """A plain out with `cache: false`, or one that persists, would keep its stage out of the run cache.

    Those of the methods have no cache: `dvc checkout` and `dvc exp apply` would fail where the methods have not run.
    """
    for stage, spec in ALL_STAGES.items():
        if stage in METHOD_STAGES:
            assert all(list(out.values()) == [{"cache": False}] for out in spec.get("outs", [])), stage
        else:
            assert all(isinstance(out, str) for out in spec.get("outs", [])), stage
        for entry in spec.get("metrics", []) + spec.get("plots", []):
            assert [settings["cache"] for settings in entry.values()] == [False], stage
            assert all("persist" not in settings for settings in entry.values()), stage


def test_git_ignores_what_dvc_keeps_and_nothing_that_it_should_hold():
    ignored = pathspec.GitIgnoreSpec.from_lines((ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()).match_file
    for stage in ALL_STAGES:
        for path in declared(stage, "outs"):
            assert ignored(path) or ignored(f"{path}/file"), f"{path} would be committed"
        for path in declared(stage, "metrics", "plots") | {path for path in declared(stage, "deps") if is_source(path)}:
            assert not ignored(path) and not ignored(f"{path}/file"), f"{path} would not be committed"
    assert ignored("experiments/sft.json") and ignored(".cache/checkpoints/x")


def is_source(path):
    """Whether no stage makes this file."""
    return not any(covers(out, path) for stage in ALL_STAGES for out in declared(stage, "outs"))


def test_plots_stand_at_their_stages_alone():
    """DVC would draw plots of a top-level section twice."""
    assert set(PIPELINE) == {"stages"} and set(BASE_PIPELINE) == {"stages"}
    assert PLOTS and all(path.suffix == ".csv" for path in [*PLOTS, *BASE_PLOTS])


@pytest.mark.parametrize("path", [*PLOTS, *BASE_PLOTS], ids=str)
def test_a_plot_has_a_template_of_ours_a_title_and_named_axes(path):
    settings = {**PLOTS, **BASE_PLOTS}[path]
    assert set(settings) == {"cache", "template", "title", "x", "y", "x_label", "y_label"}
    assert all(value for key, value in settings.items() if key != "cache")
    assert (ROOT / ".dvc/plots" / f"{settings['template']}.json").is_file()


def test_titles_tell_plots_apart():
    titles = [settings["title"] for settings in [*PLOTS.values(), *BASE_PLOTS.values()]]
    assert len(set(titles)) == len(titles)


def fields(template):
    """Columns that a template names besides the axes; `rev` is DVC's, `label` a tick's, and `as` names computed ones."""
    text = (ROOT / ".dvc/plots" / f"{template}.json").read_text(encoding="utf-8")
    json.loads(text)
    named = set(re.findall(r'"field": "(\w+)"', text)) | set(re.findall(r"datum\.(\w+)", text))
    inline = set(re.findall(r'"values": \[\{"(\w+)"', text))  # data that the template brings itself
    return named - inline - set(re.findall(r'"as": "(\w+)"', text)) - {"rev", "label"}


def check_columns(file, settings):
    with file.open(encoding="utf-8", newline="") as lines:
        header, *rows = csv.reader(lines)
    wanted = {settings["x"], settings["y"], *fields(settings["template"])}
    assert wanted <= set(header), f"{file} has no {wanted - set(header)}"
    assert rows, f"{file} is empty"
    return header, rows


@pytest.mark.parametrize("path", PLOTS, ids=str)
def test_the_columns_of_a_plot_are_written(ran, path):
    check_columns(ran / path, PLOTS[path])


@pytest.mark.parametrize("path", [*PLOTS, *BASE_PLOTS], ids=str)
def test_the_columns_of_a_plot_stand_in_the_committed_file(path):
    if not (ROOT / path).is_file():
        pytest.skip(f"{path} is not there yet")
    check_columns(ROOT / path, {**PLOTS, **BASE_PLOTS}[path])


def metric_names(folder):
    """Dotted name and value of all metrics below a folder; checks that they are two levels deep."""
    for file in sorted({path for stage in ALL_STAGES for path in declared(stage, "metrics")}):
        if (folder / file).is_file():
            for group, values in json.loads((folder / file).read_text(encoding="utf-8")).items():
                assert isinstance(values, dict), f"{file}: {group} holds no names"
                yield from ((f"{group}.{name}", value) for name, value in values.items())


# Undefined where no answer names a key idea, answers hold no text, or prompts leave no room for an answer.
UNDEFINED = (
    ".precision",
    ".precision_gain",
    ".equal_length_accuracy",
    "bits_per_byte",
    "_sampled",
    "_sampled_low",
    "_sampled_high",
    ".samples_cut",
)


def check_metrics(found):
    names = [name for name, _ in found]
    assert len(set(names)) == len(names), "a name that two files share gets a long column"
    for name, value in found:
        if name.endswith(("verdict", ".health")):
            assert isinstance(value, str) and value, f"{name}: {value!r}"
            continue
        if value is None and name.endswith(UNDEFINED):
            continue
        assert isinstance(value, int | float) and not isinstance(value, bool), f"{name}: {value!r}"
        assert math.isfinite(value) and round(value, 4) == value, f"{name}: {value!r}"


def test_metrics_are_finite_numbers_or_verdicts_with_names_of_their_own(ran):
    found = list(metric_names(ran))
    assert {"sft", "dpo", "dpo_vs_sft"} <= {name.split(".")[0] for name, _ in found}
    check_metrics(found)


def test_each_metrics_file_holds_at_most_eight_figures(ran):
    """The headline figures; all others are in reports/<stage>.json."""
    for path in sorted({path for stage in ALL_STAGES for path in declared(stage, "metrics")}):
        groups = json.loads((ran / path).read_text(encoding="utf-8")).values()
        assert 1 <= sum(map(len, groups)) <= 8, path


def test_every_headline_figure_is_in_the_report_too(ran):
    for stage in ("prepare", "sft", "dpo", "kto", "orpo", "reward", "best_of_n", "grpo"):
        headline, report = (
            json.loads((ran / folder / f"{stage}.json").read_text(encoding="utf-8")) for folder in ("metrics", "reports")
        )
        assert {group: figures.items() <= report[group].items() for group, figures in headline.items()} == dict.fromkeys(
            headline, True
        )


def test_committed_metrics_have_the_names_that_the_stages_write(ran):
    committed = list(metric_names(ROOT))
    check_metrics(committed)
    written = {name for name, _ in metric_names(ran)}
    assert {name for name, _ in committed} <= written
    if all((ROOT / path).is_file() for stage in ALL_STAGES for path in declared(stage, "metrics")):
        assert {name for name, _ in committed} == written


# ---- Scripts ---------------------------------------------------------------------------------------------------------


def test_no_script_takes_the_name_of_a_library():
    """`python src/x.py` puts src/ first on the path: a file named datasets.py would be imported in place of the library."""
    ours = {path.stem for path in (ROOT / "src").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert "aligner" in ours
    assert ours & (set(metadata.packages_distributions()) | set(sys.stdlib_module_names)) == set()


# Modules that need torch to be defined; others import them inside functions.
OF_TORCH = {"aligner.training.padding_free", "aligner.training.llama_layer"}


def test_contract_nothing_heavy_is_imported_at_the_top_of_a_file(subtests):
    for path in sources():
        module = path.relative_to(ROOT / "src").with_suffix("").as_posix().replace("/", ".")
        names = set(names_imported_at_the_top(path))
        with subtests.test(module=module):
            if module not in OF_TORCH:
                assert names & OF_TORCH == set()
                assert {name.split(".")[0] for name in names} & HEAVY == set()


def run_script(script, *arguments, cwd):
    """Runs a stage script as DVC does, and returns the top-level modules that it imported."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("DVC_ROOT", None)
    command = [sys.executable, "-X", "importtime", ROOT / "src" / f"{script}.py", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, {name.split(".")[0] for name in re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE)}


@pytest.mark.parametrize("script", [*SCRIPTS, *METHOD_SCRIPTS])
def test_help_is_quick_and_leaves_nothing_behind(tmp_path, script):
    """Quick, because it loads no heavy library; numpy and pydantic are acceptable."""
    shown, modules = run_script(script, "--help", cwd=tmp_path)
    assert "reads" in shown and "writes" in shown and f"python src/{script}.py" in shown
    assert modules & HEAVY == set() and "argparse" in modules
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", ["prepare", "score", "unpaired", "league"])
def test_stages_without_a_model_load_no_model_library(ran, tmp_path, script):
    _, modules = run_script(script, cwd=shutil.copytree(ran, tmp_path / "run"))
    assert modules & (HEAVY - {"scipy"}) == set() and "ruamel" in modules
