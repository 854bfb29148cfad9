"""The schema of params.yaml: names, types and ranges, but no values. A stage gets exactly the parameters that it declares.

Only params.yaml holds values. All unknown, missing, mistyped or out-of-range values are reported in one error before a model
loads; DVC itself accepts `-S dpo.beta=abc`.
"""

from __future__ import annotations

import difflib
import io
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails

from aligner.run.errors import InputError

PARAMS_FILE = Path("params.yaml")
# What pydantic adds to the keys in a problem's location: the branches of a union, and a mark for "this is a key".
PYDANTIC_PARTS = ("constrained-str", "list[constrained-str]", "[key]")


def _no_boolean(value: Any) -> Any:
    """Refuses booleans, which Python accepts as 0 and 1."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


Int = Annotated[int, Field(strict=True)]
Float = Annotated[float, BeforeValidator(_no_boolean), Field(allow_inf_nan=False)]
PositiveInt = Annotated[Int, Field(gt=0)]
NonNegativeInt = Annotated[Int, Field(ge=0)]
PositiveFloat = Annotated[Float, Field(gt=0)]
NonNegativeFloat = Annotated[Float, Field(ge=0)]
Share = Annotated[Float, Field(ge=0, le=1)]
Flag = Annotated[bool, Field(strict=True)]
Name = Annotated[str, Field(min_length=1)]
LossType = Literal["sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "nca_pair", "apo_zero", "apo_down", "discopop"]


def _no_dot(name: str) -> str:
    """Refuses a dot: DVC and the stages read every dot of `models.<name>` as a level."""
    if "." in name:
        raise ValueError("must have no dot in its name")
    return name


ModelName = Annotated[Name, AfterValidator(_no_dot)]


class Section(BaseModel):
    """A frozen section that refuses unknown keys; it states types and ranges, but no values."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Optimisation(Section):
    """Parameters of a training stage that depend on the model and the hardware (names as in transformers)."""

    learning_rate: PositiveFloat
    per_device_train_batch_size: PositiveInt
    gradient_accumulation_steps: PositiveInt


class Preparation(Section):
    """Parameters of prepare that depend on the hardware."""

    processes: Literal["auto"] | PositiveInt


class Decoding(Section):
    """Parameters of generation that depend on the model and the hardware."""

    backend: Literal["transformers", "vllm"]
    batch_size: PositiveInt


class ModelEntry(Section):
    """One entry of `models`: a model's location and how it runs."""

    path: Name
    revision: Name | None
    chat_template: Name | None
    max_length: Annotated[Int, Field(ge=16)]
    device: Literal["auto", "cpu", "cuda", "mps"]
    dtype: Literal["auto", "float32", "bfloat16"]
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"]
    threads: NonNegativeInt
    processes: Literal["auto"] | PositiveInt
    shard: Flag
    padding_free: Flag
    gradient_checkpointing: Flag
    torch_compile: Flag
    prepare: Preparation
    sft: Optimisation
    dpo: Optimisation
    generate: Decoding
    kto: Optimisation
    orpo: Optimisation
    reward: Optimisation
    grpo: Optimisation


class Prepare(Section):
    sft: Name
    pairs: Name
    eval: Name
    concepts: Name
    validation_share: Annotated[Float, Field(gt=0, lt=1)]
    on_bad_row: Literal["error", "drop"]
    max_bad_share: Share
    max_leakage: Share


class Lora(Section):
    r: PositiveInt
    lora_alpha: PositiveInt
    lora_dropout: Annotated[Float, Field(ge=0, lt=1)]
    target_modules: Name | list[Name]


class Training(Section):
    """Parameters that the training stages share (names as in transformers)."""

    num_train_epochs: PositiveFloat
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"]
    warmup_steps: NonNegativeFloat
    weight_decay: NonNegativeFloat
    max_grad_norm: PositiveFloat
    logging_steps: PositiveInt
    eval_steps: PositiveInt


class Sft(Training):
    train_sampling_strategy: Literal["random", "batch_rebalance"]


class Dpo(Training):
    beta: PositiveFloat
    loss_type: LossType
    label_smoothing: Annotated[Float, Field(ge=0, lt=0.5)]
    sft_weight: NonNegativeFloat

    @field_validator("label_smoothing")
    @classmethod
    def _is_read(cls, value: float, info: ValidationInfo) -> float:
        """Refuses a value that trl would ignore."""
        if value and info.data.get("loss_type", "robust") != "robust":
            raise ValueError("must be 0 unless dpo.loss_type is robust (trl's other losses do not read it)")
        return value


class Unpaired(Section):
    rows: Name


class Kto(Training):
    beta: PositiveFloat
    loss_type: Literal["kto", "apo_zero_unpaired"]
    desirable_weight: PositiveFloat
    undesirable_weight: PositiveFloat


class Orpo(Training):
    beta: PositiveFloat


class Reward(Training):
    center_rewards_coefficient: NonNegativeFloat


class BestOfN(Section):
    n: PositiveInt
    temperature: PositiveFloat


class RewardWeights(Section):
    """The weights of the functions in aligner/training/rewards.py, by name."""

    keyword_hits: Float
    foreign_ideas: Float
    repetition: Float
    length: Float
    format: Float


class Grpo(Training):
    prompts: Name
    reward_weights: RewardWeights
    num_generations: Annotated[Int, Field(ge=2)]
    max_completion_length: PositiveInt
    temperature: PositiveFloat
    beta: NonNegativeFloat
    loss_type: Literal["grpo", "dapo", "bnpo", "dr_grpo"]
    scale_rewards: Literal["group", "batch", "none"]


class Generate(Section):
    max_new_tokens: PositiveInt
    do_sample: Flag
    temperature: PositiveFloat
    top_p: Annotated[Float, Field(gt=0, le=1)]
    repetition_penalty: PositiveFloat
    no_repeat_ngram_size: Annotated[Int, Field(ge=0)]


class Score(Section):
    tie_threshold: NonNegativeFloat
    alpha: Annotated[Float, Field(gt=0, lt=0.5)]
    equivalence_margin: Annotated[Float, Field(gt=0, le=1)]


class League(Section):
    models: Annotated[list[ModelName], Field(min_length=2)]


class Shared(Section):
    """What params.yaml holds beside its models."""

    model: Name
    seed: Annotated[Int, Field(ge=0, lt=2**32)]
    prepare: Prepare
    lora: Lora
    sft: Sft
    dpo: Dpo
    generate: Generate
    score: Score
    unpaired: Unpaired
    kto: Kto
    orpo: Orpo
    reward: Reward
    best_of_n: BestOfN
    grpo: Grpo
    league: League


class Params(Shared):
    """The whole of params.yaml."""

    models: dict[ModelName, ModelEntry]


class StageParams(Shared):
    """The parameters that one stage declares: a part of Params, with the entry of `models` that `model` names.

    Reading an undeclared parameter raises AttributeError, so dvc.yaml, which lists the same names, cannot miss one that the code
    uses.
    """

    model_entry: ModelEntry


ENTRY = "models.${model}"
# The keys of a model's entry that a stage needs to load it, and those that it needs to train it.
LOADING = [
    "model",
    *(f"{ENTRY}.{key}" for key in ("attn_implementation", "chat_template", "device", "dtype", "path", "revision", "threads")),
]
# The keys of an entry that single stages of dvc.yaml need beside them.
OF_FIVE_STAGES = [f"{ENTRY}.{key}" for key in ("max_length", "sft", "dpo", "generate")]
TRAINING = [
    *LOADING,
    *(f"{ENTRY}.{key}" for key in ("gradient_checkpointing", "padding_free", "processes", "shard", "torch_compile")),
]


def load(names: list[str], path: Path = PARAMS_FILE) -> StageParams:
    """The values of `names` only, spelled as in dvc.yaml ("seed", "dpo", "prepare.max_leakage", "models.${model}.path").

    Raises InputError with every problem of the file at once.
    """
    params = read(path)
    entry = params.models[params.model]
    of_entry = [name.removeprefix(f"{ENTRY}.") for name in names if name.startswith(f"{ENTRY}.")]
    values = _parts(params, [name for name in names if not name.startswith(ENTRY)])
    if ENTRY in names:
        values["model_entry"] = entry
    elif of_entry:
        values["model_entry"] = ModelEntry.model_construct(**_parts(entry, of_entry))
    return StageParams.model_construct(**values)


def _parts(section: Section, names: list[str]) -> dict[str, Any]:
    """The values of a section by key; for dotted names ("prepare.max_leakage"), subsections with only the keys named."""
    values: dict[str, Any] = {name: getattr(section, name) for name in names if "." not in name}
    for name in names:
        key, _, rest = name.partition(".")
        if rest:
            whole, known = getattr(section, key), vars(values[key]) if key in values else {}
            values[key] = type(whole).model_construct(**known, **_parts(whole, [rest]))
    return values


def read(path: Path = PARAMS_FILE) -> Params:
    """The validated file; raises InputError with every problem at once."""
    values = _parse(path)
    problems = _choice(path, values.get("model"), values.get("models"))
    try:
        params = Params.model_validate(values)
    except ValidationError as error:
        problems = [_explain(path, problem) for problem in error.errors()] + problems
    if problems:
        raise InputError("\n".join(problems))
    return params


def _choice(path: Path, model: Any, models: Any) -> list[str]:
    """The problem that `model` names no entry of `models`; the schema reports wrong types."""
    if not isinstance(model, str) or not isinstance(models, dict) or model in models:
        return []
    names = list(map(str, models))
    return [f"{path}: model is {model!r}, which is not a key of models ({', '.join(names)}){_did_you_mean(model, names)}"]


def _parse(path: Path) -> dict[str, Any]:
    """Reads YAML 1.2, as DVC does: PyYAML (1.1) reads `5e-06`, which `dvc exp run -S` writes, as a string."""
    from ruamel.yaml import YAML, YAMLError

    try:
        values = YAML(typ="safe", pure=True).load(io.StringIO(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"{path} is missing. Run from the root of the repository, or: git checkout -- {path}") from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}. See: git diff {path}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a mapping of sections. Restore it: git checkout -- {path}")
    return values


def _explain(path: Path, problem: ErrorDetails) -> str:
    """One line per problem: its place, the reason, and a guess at the intended key."""
    location = tuple(str(part) for part in problem["loc"] if part not in PYDANTIC_PARTS)
    name = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return f"{path}: {name} is not a parameter{_did_you_mean(location[-1], _known_keys(location), location[:-1])}"
    if problem["type"] == "missing":
        return f"{path}: {name} is missing. See: git diff {path}"
    message = (
        problem["msg"]
        .removeprefix("Value error, ")
        .replace("Input should be", "must be")
        .replace("greater than or equal to", ">=")
    )
    message = message.replace("less than or equal to", "<=").replace("greater than", ">").replace("less than", "<")
    return f"{path}: {name} {message[0].lower()}{message[1:]}, got {_shown(problem['input'])}"


def _shown(value: Any) -> str:
    """A short value in full, the beginning of a nested one: a few lines of YAML aliases can mean a billion values."""
    shortened = reprlib.Repr()
    shortened.maxlevel, shortened.maxstring, shortened.maxlong, shortened.maxother = 2, 200, 200, 200
    return shortened.repr(value)


def _known_keys(location: tuple[str, ...]) -> list[str]:
    """The keys of the section that `location` points into."""
    section: Any = Params
    parents = location[:-1]
    if parents[:1] == ("models",):
        section, parents = ModelEntry, parents[2:]
    for part in parents:
        section = section.model_fields[part].annotation
    return list(section.model_fields)


def _did_you_mean(word: str, known: list[str], parents: tuple[str, ...] = ()) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {'.'.join((*parents, close[0]))}?)" if close else ""
