"""The stages that an edit makes stale, exactly: each parameter, source file, raw file and the pins, one at a time.

The expected stages are written here or follow from the code's imports, never from dvc.yaml, which is under test. `dvc status`
names the stages whose own inputs changed. For some edits the tests also check what `dvc repro` then runs, in a clone whose stages
write small stand-ins (tests/support/clones.py).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from ruamel.yaml import YAML
from support.clones import Clone, stand_in
from support.pipeline_files import METHODS, ROOT, SCRIPTS, code

pytestmark = pytest.mark.slow

PRETRAIN = "models/base/dvc.yaml:pretrain"
GENERATE = ["generate@base", "generate@sft", "generate@dpo"]
# The stages of pipelines/dvc.yaml, as DVC names them from the root.
SIDE = ("unpaired", "kto", "orpo", "reward", "best_of_n", "grpo", "league")
UNPAIRED, KTO, ORPO, REWARD, BEST_OF_N, GRPO, LEAGUE = (f"{METHODS}:{stage}" for stage in SIDE)
ANSWERS = [f"{METHODS}:generate@{model}" for model in ("kto", "orpo", "grpo")]
STAGES = ["prepare", "sft", "dpo", *GENERATE, "score", UNPAIRED, KTO, ORPO, REWARD, BEST_OF_N, GRPO, *ANSWERS, LEAGUE]
TRAINERS = ["sft", "dpo", KTO, ORPO, REWARD, GRPO]
LOADERS = [*TRAINERS, BEST_OF_N, *GENERATE, *ANSWERS, "score", LEAGUE]  # load a model; score and the league show its settings

# Parameter or section -> the stages that it stales; the longest name that fits counts. score shows every parameter on its page.
OF_PARAMS = {
    "model": STAGES,
    "seed": LOADERS,
    "models.mini.path": STAGES,
    "models.mini.revision": STAGES,
    "models.mini.chat_template": STAGES,
    "models.mini.max_length": ["prepare", "score", UNPAIRED],
    "models.mini.device": LOADERS,
    "models.mini.dtype": LOADERS,
    "models.mini.attn_implementation": LOADERS,
    "models.mini.threads": LOADERS,
    "models.mini.padding_free": [*TRAINERS, BEST_OF_N, "score"],
    "models.mini.processes": [*TRAINERS, "score"],
    "models.mini.shard": [*TRAINERS, "score"],
    "models.mini.gradient_checkpointing": [*TRAINERS, BEST_OF_N, "score"],
    "models.mini.torch_compile": [*TRAINERS, "score"],
    "models.mini.prepare": [],  # changes no output
    "models.mini.sft": ["sft", "score"],
    "models.mini.dpo": ["dpo", "score"],
    "models.mini.generate": [*GENERATE, *ANSWERS, "score"],
    "models.mini.generate.batch_size": [*GENERATE, *ANSWERS, BEST_OF_N, "score"],
    "models.mini.kto": [KTO],
    "models.mini.orpo": [ORPO],
    "models.mini.reward": [REWARD],
    "models.mini.grpo": [GRPO],
    "models.tinyllama": [],  # not the chosen one
    "prepare": ["prepare", "score", UNPAIRED],
    **{
        f"prepare.{key}": ["prepare", "score", UNPAIRED, GRPO]
        for key in ("max_bad_share", "max_leakage", "on_bad_row", "validation_share")
    },
    "lora": ["sft", "score", ORPO, REWARD],  # dpo and kto go on with sft's adapter
    "sft": ["sft", "score"],
    "dpo": ["dpo", "score"],
    "generate": [*GENERATE, *ANSWERS, "score", LEAGUE],
    **{
        f"generate.{key}": [*GENERATE, *ANSWERS, BEST_OF_N, "score", LEAGUE]
        for key in ("max_new_tokens", "no_repeat_ngram_size", "repetition_penalty")
    },
    "score": ["score", LEAGUE],
    "unpaired": [UNPAIRED],
    "kto": [KTO],
    "orpo": [ORPO],
    "reward": [REWARD],
    "best_of_n": [BEST_OF_N],
    "grpo": [GRPO],
    "league": [LEAGUE],
}
# File, or folder with all that is in it -> the stages that it stales. What is neither here nor in src stales nothing.
OF_FILES = {
    "data/raw/concepts.jsonl": ["prepare"],
    "data/raw/dpo_pairs.jsonl": ["prepare"],
    "data/raw/eval_prompts.jsonl": ["prepare"],
    "data/raw/grpo_prompts.jsonl": [GRPO],
    "data/raw/sft_examples.jsonl": ["prepare"],
    "requirements.txt": STAGES,
    "models/base/weights": ["prepare", "sft", "dpo", "generate@base", UNPAIRED, KTO, ORPO, REWARD, BEST_OF_N, GRPO, PRETRAIN],
    "models/base/loss.csv": [PRETRAIN],
    "models/base/corpus.py": [PRETRAIN],
    "models/base/muon.py": [PRETRAIN],
    "models/base/pretrain.py": [PRETRAIN],
    "data/bank": [PRETRAIN],
}
# Outputs that somebody edits: the stage that made them, and those that read them.
OF_OUTPUTS = {
    "data/prepared/prompts.jsonl": ["prepare", *GENERATE, *ANSWERS, BEST_OF_N],
    "data/prepared/sft_train.jsonl": ["prepare", "sft"],
    "data/prepared/dpo_train.jsonl": ["prepare", "dpo", UNPAIRED, ORPO, REWARD],
    "data/prepared/unpaired_train.jsonl": [UNPAIRED, KTO],
    "data/prepared/references.jsonl": ["prepare", "score", UNPAIRED, BEST_OF_N, GRPO, LEAGUE],
    "models/sft/weights": ["sft", "dpo", "generate@sft", KTO, ORPO, REWARD, BEST_OF_N, GRPO],
    "models/dpo/weights": ["dpo", "generate@dpo"],
    "models/kto/weights": [KTO, f"{METHODS}:generate@kto"],
    "data/generated/base.jsonl": ["generate@base", "score", LEAGUE],
    "data/generated/orpo.jsonl": [f"{METHODS}:generate@orpo", LEAGUE],
    "data/prepared/sft_validation.jsonl": ["prepare", "sft", "dpo", KTO, ORPO, GRPO],
    "metrics/dpo.json": ["dpo"],
    "metrics/league.json": [LEAGUE],
    "reports/dpo.json": ["dpo", "score", LEAGUE],
    "reports/kto.json": [KTO, LEAGUE],
    "plots/dpo_ranking.csv": ["dpo", "score"],
    "plots/sft.csv": ["sft", "score"],
    "reports/index.html": ["score"],
    "reports/league.html": [LEAGUE],
}
# Read by DVC, written by stages, or in the tests of sources and parameters.
BY_THEMSELVES = (
    ".dvc/",
    "dvc.",
    "pipelines/dvc.",
    "metrics/",
    "models/base/dvc.",
    "models/base/params.yaml",
    "params.yaml",
    "plots/",
    "src/",
)
PARAMS = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def leaves(values: Any, name: str = "") -> Iterator[str]:
    """Dotted names of all parameters."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from leaves(value, f"{name}.{key}" if name else key)
    else:
        yield name


def of_longest(table: dict[str, list[str]], name: str, separator: str) -> str | None:
    """The longest key of a table that is the name or a parent of it."""
    fitting = [key for key in table if name == key or name.startswith(key + separator)]
    return max(fitting, key=len, default=None)


def of_source(path: str) -> list[str]:
    """The stages that import a file of src, directly or not, or a module with this file beside it (page.css)."""
    return [stage for stage in STAGES if path in modules(stage.removeprefix(f"{METHODS}:").partition("@")[0])]


modules = functools.cache(code)


class Checkout:
    """A stand-in clone, and DVC in this process: the `dvc` program takes a second to start."""

    def __init__(self, clone: Clone) -> None:
        from dvc.repo import Repo

        self.clone = clone
        self.repo = Repo(str(clone.folder))

    def stale(self) -> list[str]:
        """The stages that dvc status names."""
        self.repo._reset()
        return sorted(self.repo.status())

    def repro(self) -> list[str]:
        """The stages that dvc repro runs, in order."""
        self.repo._reset()
        with contextlib.redirect_stdout(io.StringIO()):
            return [stage.addressing for stage in self.repo.reproduce()]

    @contextlib.contextmanager
    def edited(self, path: str, text: str | None = None) -> Iterator[None]:
        """A file with other content, or with one byte more, until the block ends."""
        file = self.clone.folder / path
        before = file.read_bytes()
        file.unlink()  # an output may be a link into the cache
        file.write_bytes(before + b"\n" if text is None else text.encode())
        try:
            yield
        finally:
            file.write_bytes(before)

    def params(self, name: str) -> str:
        """The text of params.yaml with another value of one parameter."""
        values = copy.deepcopy(PARAMS)
        *parents, last = name.split(".")
        section = functools.reduce(lambda at, key: at[key], parents, values)
        section[last] = "tinyllama" if name == "model" else another(section[last])
        stream = io.StringIO()
        YAML(typ="safe", pure=True).dump(values, stream)
        return stream.getvalue()


def another(value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case _:
            return f"{value or ''}x"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Iterator[Checkout]:
    """A clone for edits that are undone."""
    clone = stand_in(tmp_path_factory.mktemp("staleness") / "clone")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PATH", "DVC_SITE_CACHE_DIR"):
            patch.setenv(name, clone.environment[name])
        patch.delenv("DVC_ROOT", raising=False)
        patch.chdir(clone.folder)
        remember_yaml(patch)
        yield Checkout(clone)


def remember_yaml(patch: pytest.MonkeyPatch) -> None:
    """Parses each YAML text once; DVC would parse it some ten times per status."""
    from dvc.utils import strictyaml
    from dvc.utils.serialize import _yaml

    parse, known = _yaml.parse_yaml, {}

    def remembered(text: str, path: str, typ: str = "safe") -> Any:
        if (text, typ) not in known:
            known[text, typ] = parse(text, path, typ)
        return copy.deepcopy(known[text, typ])

    patch.setattr(_yaml, "parse_yaml", remembered)
    patch.setattr(strictyaml, "parse_yaml", remembered)


def test_nothing_is_stale_before_an_edit(checkout: Checkout) -> None:
    assert checkout.stale() == [] and checkout.repro() == []


# ---- dvc status -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", leaves(PARAMS))
def test_a_parameter_stales_the_stages_that_read_it(checkout: Checkout, name: str) -> None:
    with checkout.edited("params.yaml", checkout.params(name)):
        assert checkout.stale() == sorted(OF_PARAMS[of_longest(OF_PARAMS, name, ".")])


def test_every_line_of_the_table_of_parameters_speaks_of_one() -> None:
    assert {of_longest(OF_PARAMS, name, ".") for name in leaves(PARAMS)} == set(OF_PARAMS)


@pytest.mark.parametrize("path", [path for path in TRACKED if path.startswith("src/")])
def test_a_source_file_stales_the_stages_that_import_it(checkout: Checkout, path: str) -> None:
    with checkout.edited(path):
        assert checkout.stale() == sorted(of_source(path))


def test_imports_are_followed() -> None:
    """Some of the expected stages in full."""
    generate = [*GENERATE, BEST_OF_N, *ANSWERS]
    of_pairs, of_text = ["dpo", KTO, ORPO, GRPO], ["score", BEST_OF_N, GRPO, LEAGUE]
    assert [of_source(f"src/{script}.py") for script in SCRIPTS] == [["prepare"], ["sft"], ["dpo"], generate, ["score"]]
    assert [of_source(f"src/{script}.py") for script in SIDE] == [[f"{METHODS}:{script}"] for script in SIDE]
    assert of_source("src/aligner/training/loop.py") == TRAINERS  # a trainer's callback reruns no generate
    for shared in ("preferences", "held_out", "divergence"):
        assert of_source(f"src/aligner/training/{shared}.py") == of_pairs
    assert of_source("src/aligner/training/unpaired.py") == [KTO, GRPO]
    assert of_source("src/aligner/training/reward_model.py") == [REWARD, BEST_OF_N]
    assert of_source("src/aligner/training/rewards.py") == [GRPO]
    assert of_source("src/aligner/model/generation.py") == ["dpo", *GENERATE, KTO, ORPO, BEST_OF_N, GRPO, *ANSWERS]
    assert of_source("src/aligner/model/chat.py") == [stage for stage in STAGES if stage not in ("score", LEAGUE)]
    assert of_source("src/aligner/data/reader.py") == ["prepare", UNPAIRED, GRPO]
    assert of_source("src/aligner/keywords/groups.py") == ["prepare", "score", UNPAIRED, BEST_OF_N, GRPO, LEAGUE]
    assert of_source("src/aligner/keywords/scorer.py") == of_source("src/aligner/text_health.py") == of_text
    assert of_source("src/aligner/report/highlight.py") == ["score", LEAGUE]  # highlighting on the page reruns no prepare
    assert of_source("src/aligner/report/league.py") == of_source("src/aligner/scoring/league.py") == [LEAGUE]
    assert of_source("src/aligner/statistics.py") == ["score", BEST_OF_N, LEAGUE]
    assert of_source("src/aligner/report/page.css") == ["score", LEAGUE]
    assert not any(of_source(f"src/aligner/run/{module}.py") for module in ("params", "record", "stage", "terminal"))
    assert of_source("src/votes.py") == of_source("src/aligner/judging/votes.py") == []


@pytest.mark.parametrize("path", [path for path in TRACKED if of_longest(OF_FILES, path, "/")])
def test_a_data_file_stales_the_stages_that_read_it(checkout: Checkout, path: str) -> None:
    with checkout.edited(path):
        assert checkout.stale() == sorted(OF_FILES[of_longest(OF_FILES, path, "/")])


def test_every_line_of_the_table_of_files_speaks_of_one() -> None:
    assert {of_longest(OF_FILES, path, "/") for path in TRACKED} - {None} == set(OF_FILES)


@pytest.mark.parametrize("path", OF_OUTPUTS)
def test_an_edited_output_stales_its_stage_and_its_readers(checkout: Checkout, path: str) -> None:
    with checkout.edited(path):
        assert checkout.stale() == sorted(OF_OUTPUTS[path])


def test_all_other_files_stale_nothing(checkout: Checkout) -> None:
    """README, docs, tests, benchmarks, Makefile, settings of tools, …: all edited at once."""
    others = [
        path
        for path in TRACKED
        if not path.startswith(BY_THEMSELVES) and not of_longest(OF_FILES, path, "/") and (ROOT / path).is_file()
    ]
    assert {"README.md", "Makefile", "tests/conftest.py", "tools/deps.py", "models/base/compose.py"} <= set(others)
    with contextlib.ExitStack() as edits:
        for path in others:
            edits.enter_context(checkout.edited(path))
        assert checkout.stale() == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\nseed: 17\n", "\n\n# A comment.\nseed:   17   # another\n\n"),
        ("  beta: 0.1\n", "  beta: 1.0e-1\n"),
        ("model: mini\n", "model: 'mini'\n"),
    ],
    ids=["comments and spaces", "the same number", "the same word"],
)
def test_another_spelling_of_params_stales_nothing(checkout: Checkout, old: str, new: str) -> None:
    text = (checkout.clone.folder / "params.yaml").read_text(encoding="utf-8")
    assert old in text
    with checkout.edited("params.yaml", text.replace(old, new)):
        assert checkout.stale() == []


# ---- dvc repro ------------------------------------------------------------------------------------------------------


def restore(checkout: Checkout) -> None:
    checkout.clone("git", "checkout", "--quiet", ".")
    checkout.repo._reset()
    checkout.repo.checkout(force=True)
    assert checkout.stale() == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("score.alpha", ["score"]),
        ("generate.do_sample", [*GENERATE, "score"]),
        ("dpo.beta", ["dpo", "generate@dpo", "score"]),
        ("lora.r", ["sft", "dpo", "generate@sft", "generate@dpo", "score"]),
        ("models.tinyllama.dtype", []),
    ],
)
def test_repro_runs_what_is_stale_and_what_follows(checkout: Checkout, name: str, expected: list[str]) -> None:
    (checkout.clone.folder / "params.yaml").write_text(checkout.params(name), encoding="utf-8")
    assert in_order(checkout.repro()) == expected
    restore(checkout)


def in_order(stages: list[str]) -> list[str]:
    """DVC may run stages that do not need one another in any order."""
    return sorted(stages, key=STAGES.index)


def test_what_comes_out_as_it_was_stales_nothing_further(checkout: Checkout, monkeypatch) -> None:
    """An edit of prepare that changes no output runs prepare alone."""
    monkeypatch.setenv("CONTENT", "0.5")
    path = checkout.clone.folder / "src/prepare.py"
    path.write_text(path.read_text(encoding="utf-8") + "# a remark\n", encoding="utf-8")
    assert checkout.repro() == ["prepare"]
    restore(checkout)
