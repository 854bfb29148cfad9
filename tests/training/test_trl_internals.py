"""Private attributes of the trainers: one module uses them, and the installed trl and transformers still have them."""

import ast
import inspect
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import tqdm
import transformers
import trl
import trl.trainer.utils
from support.workspace import REPOSITORY
from transformers import PretrainedConfig, PreTrainedModel
from trl.experimental.orpo import ORPOTrainer

from aligner.training import trl_internals

SOURCE = REPOSITORY / "src"
MODULE = Path(trl_internals.__file__)
TRAINERS = (trl.SFTTrainer, trl.DPOTrainer, trl.KTOTrainer)
# What only a GRPOTrainer has, to generate and to score.
OF_GRPO = {"_generate_and_score_completions", "_get_per_token_logps_and_entropies"}
# TRL's experimental ORPOTrainer names its sums differently; our subclass gives them the usual names.
ALIASED = {"_metrics", "_total_train_tokens"}
# Private attributes that other modules use, each with its owner: a model, a configuration or a module, never a trainer.
ELSEWHERE = {
    "aligner/run/pool.py": {"_exit": os},
    "aligner/run/ranks.py": {"_exit": os},
    "aligner/run/terminal.py": {"_instances": tqdm.tqdm},
    "aligner/model/runtime.py": {"_use_triton": trl.trainer.utils},
    "aligner/training/llama_layer.py": {"_softmax_backward_data": torch},
    "aligner/training/padding_free.py": {
        "_attn_implementation": PretrainedConfig,
        "_supports_attention_backend": PreTrainedModel,
    },
    "aligner/training/setup.py": {"_no_split_modules": PreTrainedModel},
}
OF_NAMEDTUPLES = {"_replace", "_asdict"}


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_attributes(path: Path) -> set[str]:
    """Private attributes that a file reads or sets on anything but `self`, `getattr` and the like included."""
    return {name for name in attributes(ast.parse(path.read_text(encoding="utf-8"))) if private(name)} - OF_NAMEDTUPLES


def attributes(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                pass
            case ast.Attribute(attr=name):
                yield name
            case ast.Call(func=ast.Name(id="getattr" | "setattr" | "hasattr"), args=[_, ast.Constant(value=str(name)), *_]):
                yield name


def overridden(path: Path) -> dict[str, set[str]]:
    """The private methods that the subclasses in a file define, by the name of the class that they extend."""
    classes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ClassDef)]
    return {
        ast.unparse(node.bases[0]): {each.name for each in node.body if isinstance(each, ast.FunctionDef) and private(each.name)}
        for node in classes
    }


def set_on_self(trainer: type) -> set[str]:
    """Every attribute that the methods of a trainer and of its base classes assign to `self`."""
    classes = [each for each in trainer.__mro__ if each.__module__.split(".")[0] in ("trl", "transformers")]
    nodes = (node for each in classes for node in ast.walk(ast.parse(Path(inspect.getfile(each)).read_text(encoding="utf-8"))))
    return {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda trainer: trainer.__name__)
def test_trl_internals_exist_on_the_installed_trainers(trainer):
    used, stored = private_attributes(MODULE) - OF_GRPO, set_on_self(trainer)
    assert len(used) >= 10, "the walk sees less than the module uses"
    assert [name for name in sorted(used) if not hasattr(trainer, name) and name not in stored] == []


def test_what_an_orpo_trainer_lacks_our_subclass_gives_it():
    used, stored = private_attributes(MODULE) - OF_GRPO, set_on_self(ORPOTrainer)
    assert {name for name in used if not hasattr(ORPOTrainer, name) and name not in stored} == ALIASED
    assert ALIASED <= set_on_self(trl_internals.orpo_trainer_class()) or "_stored_metrics" in stored


def test_trl_internals_override_methods_that_exist():
    found = overridden(MODULE)
    found.pop("ORPOTrainer")  # overrides public methods
    assert set(found) == {trainer.__name__ for trainer in (*TRAINERS, trl.GRPOTrainer)} and all(found.values())
    missing = [(name, method) for name, methods in found.items() for method in methods if not hasattr(getattr(trl, name), method)]
    assert missing == []


def test_trl_internals_name_the_versions_that_they_were_written_for():
    """An upgrade must go through this module."""
    for library in (trl, transformers):
        written_for = f"{library.__name__} {'.'.join(library.__version__.split('.')[:2])}"
        assert written_for in trl_internals.__doc__, f"check {MODULE.name} against {written_for}, then name it there"


def test_no_other_module_uses_a_private_attribute_of_a_trainer():
    """Whatever is private elsewhere is listed above, with the library's object that has it."""
    modules = {path.relative_to(SOURCE).as_posix(): private_attributes(path) for path in SOURCE.rglob("*.py") if path != MODULE}
    assert {name: names for name, names in modules.items() if names} == {name: set(each) for name, each in ELSEWHERE.items()}
    gone = [(path, name) for path, names in ELSEWHERE.items() for name, owner in names.items() if not hasattr(owner, name)]
    assert gone == []


def test_the_walk_sees_private_attributes_of_every_kind(tmp_path):
    """Guards the test above: it would pass if nothing were found."""
    path = tmp_path / "module.py"
    path.write_text(
        "trainer._a = model(x)._b\ngetattr(trainer, '_c')\nself._d\ntrainer.e.__class__\nrow._replace()\n", encoding="utf-8"
    )
    assert private_attributes(path) == {"_a", "_b", "_c"}
