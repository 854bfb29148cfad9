"""params.yaml and its schema: accepted and refused values, the error messages, and that DVC can rewrite the file."""

import copy
import io
import itertools
import re
import typing
from pathlib import Path

import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from aligner.run import params as parameters
from aligner.run.errors import InputError
from aligner.run.params import ModelEntry, Params, Section, load, read

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "params.yaml"
TEXT = FILE.read_text(encoding="utf-8")
VALUES = YAML(typ="safe", pure=True).load(TEXT)
GIVEN = {"dpo.label_smoothing": {"dpo.loss_type": "robust"}}  # what must hold for a key to take other values
ONE_IS_TOO_MUCH = {"prepare.validation_share", "lora.lora_dropout", "dpo.label_smoothing", "score.alpha"}


def schema_keys(section=Params, parents=()):
    """(path, type) of every key of the schema that holds a value; "mini" represents every model."""
    for name, field in section.model_fields.items():
        path = (*parents, name)
        if path == ("models",):
            yield from schema_keys(ModelEntry, (*path, "mini"))
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from schema_keys(field.annotation, path)
        else:
            yield ".".join(path), field.annotation


def sections(section=Section):
    for child in section.__subclasses__():
        yield child
        yield from sections(child)


def paths(values, parents=()):
    """Every key of nested mappings, mappings themselves included, as a tuple; entries of `models` are names, not keys."""
    for key, value in values.items():
        if parents != ("models",):
            yield (*parents, key)
        if isinstance(value, dict):
            yield from paths(value, (*parents, key))


KEYS = dict(schema_keys())
FLOATS = [key for key, kind in KEYS.items() if kind is float]
INTS = [key for key, kind in KEYS.items() if kind is int]
FLAGS = [key for key, kind in KEYS.items() if kind is bool]
CHOICES = [key for key, kind in KEYS.items() if typing.get_origin(kind) is typing.Literal]
NAMES = [key for key, kind in KEYS.items() if kind in (str, str | None)]


@pytest.fixture
def written(tmp_path):
    """Writes params.yaml with some dotted keys replaced by raw YAML text and returns its path."""

    def write(**raw):
        path = tmp_path / "params.yaml"
        path.write_text(edited(raw), encoding="utf-8")
        return path

    return write


def edited(raw):
    values = copy.deepcopy(VALUES)
    for index, key in enumerate(raw):
        *parents, last = key.split(".")
        parent = values
        for part in parents:
            parent = parent[part]
        parent[last] = f"STAND_IN_{index}_"
    out = io.StringIO()
    YAML().dump(values, out)
    text = out.getvalue()
    for index, spelling in enumerate(raw.values()):
        text = text.replace(f"STAND_IN_{index}_", spelling)
    return text


def value_at(params, key):
    for part in key.split("."):
        params = params[part] if isinstance(params, dict) else getattr(params, part)
    return params


def problems(path):
    """The lines of the error that reading `path` raises, without the file's name."""
    with pytest.raises(InputError) as caught:
        read(path)
    return [line.removeprefix(f"{path}: ") for line in str(caught.value).splitlines()]


# ---- What is accepted -----------------------------------------------------------------------------------------------


def test_the_walk_sees_the_schema():
    """Guards the loops below: an empty list would let them all pass."""
    assert {"dpo.beta", "models.mini.sft.learning_rate", "prepare.validation_share", "score.tie_threshold"} <= set(FLOATS)
    assert {"seed", "lora.r", "models.mini.generate.batch_size"} <= set(INTS)
    assert {"generate.do_sample", "models.mini.gradient_checkpointing"} <= set(FLAGS)
    assert {"dpo.loss_type", "models.mini.device"} <= set(CHOICES)
    assert {"model", "models.mini.path"} <= set(NAMES)


def test_the_committed_file_is_read_as_it_stands():
    assert read(FILE).model_dump() == VALUES


def test_params_float_may_be_spelled_in_any_way(written, subtests):
    """`5e-06` is what `dvc exp run -S x=5e-6` writes; YAML 1.1 would read a string."""
    spellings = {"1e-6": 1e-6, "5e-06": 5e-6, '"0.1"': 0.1, "1": 1.0}
    for key, (spelling, value) in itertools.product(FLOATS, spellings.items()):
        path = written(**{key: spelling}, **GIVEN.get(key, {}))
        with subtests.test(key=key, spelling=spelling):
            if spelling == "1" and key in ONE_IS_TOO_MUCH:
                assert re.fullmatch(rf"{key} must be < (1|0\.5), got 1", "\n".join(problems(path)))
            else:
                found = value_at(read(path), key)
                assert found == value and isinstance(found, float)


def test_empty_is_no_value():
    assert read(FILE).models["mini"].revision is None


def test_target_modules_may_be_a_name_or_a_list(written):
    assert read(written(**{"lora.target_modules": "q_proj"})).lora.target_modules == "q_proj"
    assert read(written(**{"lora.target_modules": "[q_proj, v_proj]"})).lora.target_modules == ["q_proj", "v_proj"]


# ---- What is refused ------------------------------------------------------------------------------------------------


def test_all_problems_are_told_at_once(written):
    path = written(
        **{
            "model": "minni",
            "seed": "-1",
            "dpo.beta": "-0.1",
            "models.tinyllama.dtype": "float16",
            "score.tie_threshold": "abc",
            "generate.do_sample": "maybe",
            "prepare": "none",
        }
    )
    expected = {
        "models.tinyllama.dtype must be 'auto', 'float32' or 'bfloat16', got 'float16'",
        "seed must be >= 0, got -1",
        "dpo.beta must be > 0, got -0.1",
        "generate.do_sample must be a valid boolean, got 'maybe'",
        "score.tie_threshold must be a valid number, unable to parse string as a number, got 'abc'",
        "model is 'minni', which is not a key of models (mini, tinyllama) (did you mean mini?)",
    }
    found = problems(path)
    assert expected < set(found) and len(found) == len(expected) + 1
    assert any(line.startswith("prepare must be") for line in found)


def with_a_typo(path):
    """The values of the file with the last letter of one key doubled."""
    values = copy.deepcopy(VALUES)
    *parents, last = path
    section = values
    for part in parents:
        section = section[part]
    section[last + last[-1]] = section.pop(last)
    return values


def test_params_typo_is_refused_with_the_word_that_was_meant(tmp_path, subtests):
    """Every key of the file, at every depth."""
    file = tmp_path / "params.yaml"
    for path in sorted(paths(VALUES)):
        YAML().dump(with_a_typo(path), file)
        name = ".".join(path)
        wrong = f"{name}{name[-1]} is not a parameter (did you mean {name}?)"
        with subtests.test(key=name):
            assert {wrong, f"{name} is missing. See: git diff {file}"} <= set(problems(file))


def test_a_word_like_no_other_gets_no_guess(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text(TEXT.replace("dpo:\n  # Strength", "dpo:\n  strength: 1\n  # Strength"), encoding="utf-8")
    assert problems(file) == ["dpo.strength is not a parameter"]


def test_params_model_may_bear_any_name(tmp_path, subtests):
    """The message is right even for names that are also keys, or begin like a type."""
    file = tmp_path / "params.yaml"
    for name in ("strong", "path", "sft", "list[a]"):
        values = copy.deepcopy(VALUES)
        values["models"][name] = {**values["models"]["mini"], "max_length": 1, "devise": "cpu"}
        YAML().dump(values, file)
        with subtests.test(name=name):
            assert set(problems(file)) == {
                f"models.{name}.max_length must be >= 16, got 1",
                f"models.{name}.devise is not a parameter (did you mean models.{name}.device?)",
            }


def test_a_dot_in_a_model_s_name_is_refused(tmp_path):
    """DVC would read `models.qwen2.5` as the key `5` of an entry `qwen2`."""
    values = copy.deepcopy(VALUES) | {"model": "qwen2.5"}
    values["models"]["qwen2.5"] = values["models"]["mini"]
    file = tmp_path / "params.yaml"
    YAML().dump(values, file)
    assert problems(file) == ["models.qwen2.5 must have no dot in its name, got 'qwen2.5'"]


def test_an_unknown_model_is_refused_with_the_names_that_are_there(written):
    names = "which is not a key of models (mini, tinyllama)"
    assert problems(written(model="minni")) == [f"model is 'minni', {names} (did you mean mini?)"]
    assert problems(written(model="gpt-x")) == [f"model is 'gpt-x', {names}"]


def test_params_number_is_no_boolean(written, subtests):
    for key, value in itertools.product(FLOATS + INTS, ["true", "false"]):
        with subtests.test(key=key, value=value):
            assert len(found := problems(written(**{key: value}))) == 1
            assert re.fullmatch(rf"{key} must be a (number|valid integer), got {value.capitalize()}", found[0])


def test_params_whole_number_must_be_written_as_one(written, subtests):
    for key, value in itertools.product(INTS, ['"2"', "2.0", "abc", "1.5", ""]):
        with subtests.test(key=key, value=value):
            assert len(found := problems(written(**{key: value}))) == 1
            assert found[0].startswith(f"{key} must be a valid integer, got ")


def test_params_float_must_be_a_finite_number_of_its_range(written, subtests):
    for key, value in itertools.product(FLOATS, ["abc", "[0.1]", "", ".nan", ".inf", "-0.1"]):
        if value == "-0.1" and key.startswith("grpo.reward_weights."):
            continue  # a negative weight is a penalty
        with subtests.test(key=key, value=value):
            assert len(found := problems(written(**{key: value}))) == 1
            assert found[0].startswith(f"{key} must be ")


def test_params_flag_is_true_or_false(written, subtests):
    for key, value in itertools.product(FLAGS, ["1", "yes", '"true"', ""]):
        with subtests.test(key=key, value=value):
            assert problems(written(**{key: value}))[0].startswith(f"{key} must be a valid boolean, got ")


def test_params_choice_is_one_of_those_listed(written, subtests):
    for key, value in itertools.product(CHOICES, ["nonsense", "1", ""]):
        with subtests.test(key=key, value=value):
            found = problems(written(**{key: value}))
            assert len(found) == 1 and found[0].startswith(f"{key} must be ")
            assert all(repr(choice) in found[0] for choice in typing.get_args(KEYS[key]))


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("seed", "4294967296", "must be < 4294967296, got 4294967296"),
        ("models.mini.max_length", "15", "must be >= 16, got 15"),
        ("models.mini.threads", "-1", "must be >= 0, got -1"),
        ("models.mini.sft.learning_rate", "0", "must be > 0, got 0"),
        ("models.mini.dpo.per_device_train_batch_size", "0", "must be > 0, got 0"),
        ("models.mini.generate.batch_size", "0", "must be > 0, got 0"),
        ("prepare.validation_share", "0", "must be > 0, got 0"),
        ("prepare.max_bad_share", "1.01", "must be <= 1, got 1.01"),
        ("lora.r", "0", "must be > 0, got 0"),
        ("sft.num_train_epochs", "0", "must be > 0, got 0"),
        ("dpo.beta", "0", "must be > 0, got 0"),
        ("dpo.label_smoothing", "0.5", "must be < 0.5, got 0.5"),
        ("dpo.eval_steps", "0", "must be > 0, got 0"),
        ("generate.top_p", "1.1", "must be <= 1, got 1.1"),
        ("generate.temperature", "0", "must be > 0, got 0"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_limit(written, key, value, reason):
    assert problems(written(**{key: value})) == [f"{key} {reason}"]


def test_params_name_is_a_text_that_is_not_empty(written, subtests):
    for key in NAMES:
        with subtests.test(key=key, value="17"):
            assert problems(written(**{key: "17"}))[0] == f"{key} must be a valid string, got 17"
        with subtests.test(key=key, value='""'):
            assert problems(written(**{key: '""'}))[0].startswith((f"{key} string should have at least 1", "model is ''"))


def test_params_missing_section_is_named(tmp_path, subtests):
    file = tmp_path / "params.yaml"
    for section in (name for name, value in VALUES.items() if isinstance(value, dict)):
        YAML().dump({key: value for key, value in VALUES.items() if key != section}, file)
        with subtests.test(section=section):
            assert problems(file) == [f"{section} is missing. See: git diff {file}"]


def test_params_smoothing_is_refused_where_trl_would_ignore_it(written, subtests):
    reason = "must be 0 unless dpo.loss_type is robust (trl's other losses do not read it), got 0.1"
    for loss_type in ("sigmoid", "ipo", "apo_zero"):
        with subtests.test(loss_type=loss_type):
            path = written(**{"dpo.label_smoothing": "0.1", "dpo.loss_type": loss_type})
            assert problems(path) == [f"dpo.label_smoothing {reason}"]
            read(written(**{"dpo.label_smoothing": "0", "dpo.loss_type": loss_type}))


def test_a_missing_file_names_the_way_back(tmp_path):
    path = tmp_path / "params.yaml"
    with pytest.raises(InputError, match=f"{path} is missing. Run from the root .* git checkout -- {path}"):
        read(path)


@pytest.mark.parametrize("content", [b"model: [mini", b"a: 1\n\tb: 2\n", b"model: a\nmodel: b\n", b"model: \xff\n"])
def test_broken_yaml_is_one_line(tmp_path, content):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    assert len(found := problems(path)) == 1
    assert found[0].startswith(f"{path} is not valid YAML: ") and found[0].endswith(f"See: git diff {path}")


@pytest.mark.parametrize("content", ["", "# nothing\n", "- model\n", "mini\n"])
def test_a_file_without_sections_is_refused(tmp_path, content):
    path = tmp_path / "params.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="must hold a mapping of sections. Restore it: git checkout"):
        read(path)


def test_yaml_tags_run_nothing(tmp_path):
    path = tmp_path / "params.yaml"
    mark = tmp_path / "mark"
    path.write_text(f'model: !!python/object/apply:pathlib.Path.touch ["{mark}"]\n', encoding="utf-8")
    with pytest.raises(InputError):
        read(path)
    assert not mark.exists()


# ---- What a stage gets ----------------------------------------------------------------------------------------------


def test_load_gives_what_is_declared_and_nothing_else():
    params = load(["seed", "dpo", "models.${model}.path", "models.${model}.sft"], FILE)
    assert params.seed == VALUES["seed"] and params.dpo.model_dump() == VALUES["dpo"]
    assert params.model_entry.path == VALUES["models"]["mini"]["path"]
    assert params.model_entry.sft.model_dump() == VALUES["models"]["mini"]["sft"]
    assert set(vars(params)) == {"seed", "dpo", "model_entry"} and set(vars(params.model_entry)) == {"path", "sft"}
    for section, name in [(params, "sft"), (params, "model"), (params.model_entry, "dtype"), (params.model_entry, "dpo")]:
        with pytest.raises(AttributeError, match=name):
            getattr(section, name)


def test_load_follows_the_chosen_model(written):
    assert load(["models.${model}.path"], written(model="tinyllama")).model_entry.path.startswith("TinyLlama/")


def test_load_checks_the_whole_file(written):
    """A stage that needs only the seed still refuses a file with a bad value for another stage."""
    with pytest.raises(InputError, match="dpo.beta must be > 0, got -1"):
        load(["seed"], written(**{"dpo.beta": "-1"}))


def test_the_file_is_looked_for_where_the_stage_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^params.yaml is missing"):
        load(["seed"])
    assert Path("params.yaml") == parameters.PARAMS_FILE


# ---- The file itself ------------------------------------------------------------------------------------------------


def test_ruamel_writes_the_file_back_as_it_is():
    """The file has the style of DVC's writer: block lists, no needless quotes, an empty value for null."""
    out = io.StringIO()
    YAML().dump(YAML().load(TEXT), out)
    assert out.getvalue() == TEXT


def test_dvc_changes_one_line_for_one_override(tmp_path):
    """`dvc exp run -S` keeps comments and all other lines, and the value that it writes is read back as the same number."""
    from dvc.utils.hydra import apply_overrides

    path = tmp_path / "params.yaml"
    path.write_text(TEXT, encoding="utf-8")
    apply_overrides(path, [f"seed={VALUES['seed']}"])
    assert path.read_text(encoding="utf-8") == TEXT
    apply_overrides(path, ["dpo.beta=1e-6"])
    changed = [
        new for old, new in zip(TEXT.splitlines(), path.read_text(encoding="utf-8").splitlines(), strict=True) if old != new
    ]
    assert changed == ["  beta: 1e-06"] and read(path).dpo.beta == 1e-6


def test_every_key_is_explained_where_it_first_appears():
    """One comment line directly above each key; further models, and names that appeared before, need none."""
    lines, seen, bare = TEXT.splitlines(), set(), []
    for number, line in enumerate(lines):
        found = re.match(r"( *)(\w+):( \S.*)?$", line)
        if not found or lines[number + 1 : number + 2] and re.match(found[1] + r"  +\S", lines[number + 1]):
            continue  # no key, or the head of a section
        if found[2] not in seen and not re.match(found[1] + r"# \S.{8,}", lines[number - 1]):
            bare.append(f"{number + 1}: {line.strip()}")
        seen.add(found[2])
    assert bare == []
    assert seen == {key.split(".")[-1] for key in KEYS}


def test_no_value_stands_in_the_schema():
    """A default in the code could contradict the file."""
    fields = [(section.__name__, name, field) for section in sections() for name, field in section.model_fields.items()]
    assert len(fields) >= len(KEYS)
    assert [(section, name) for section, name, field in fields if not field.is_required()] == []


def test_every_section_is_frozen_and_refuses_strangers():
    for section in sections():
        assert section.model_config["frozen"] and section.model_config["extra"] == "forbid", section.__name__
