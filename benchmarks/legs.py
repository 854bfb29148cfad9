"""The legs of a benchmark: processes that wait for a command, do one unit of work, and report its cost.

A leg is a new process, so that patches, caches and allocations of one implementation cannot reach another. The legs of a
comparison run side by side and take turns, one optimiser step or one batch of answers each, so that other load on the machine
affects all of them alike; while one works, the others wait for input and use no CPU.

A leg's description is a dictionary:
  kind     sft | dpo | generate | matmul
  way      ours: the code of src/, as its stage runs it. stock: trl and transformers alone, with the same settings, on the same
           ids (generate: transformers' generate, one prompt at a time). helped: stock in a process that keeps freed memory, and
           for sft with batch_rebalance, each step in two micro-batches at least, between which rows can be balanced
  params   a params.yaml
  rows     a file of prepared rows
  adapter  an adapter to start from, or null for a new one (generate: for the base)
"""

from __future__ import annotations

import importlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aligner.run.params import StageParams

ROOT = Path(__file__).resolve().parent.parent
BYTES_PER_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
MATMUL_SIDE = {"cpu": 1024, "cuda": 8192, "mps": 2048}
MATMULS = 16


# ---- The side that commands -------------------------------------------------------------------------------------------


class Leg:
    """A running leg. The first `go` returns the cost of its start, each later one the cost of a unit of work.

    threads: torch's CPU threads; 0 means torch's default.
    """

    def __init__(self, name: str, threads: int, **description: Any) -> None:
        self.name = name
        self.said = tempfile.TemporaryFile()
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(ROOT / "src"),
            "TQDM_DISABLE": "1",
            **({"OMP_NUM_THREADS": str(threads)} if threads else {}),
        }
        environment.pop("DVC_ROOT", None)
        self.process = subprocess.Popen(
            [sys.executable, __file__, json.dumps({**description, "threads": threads}, default=str)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
        )
        assert self.process.stdin and self.process.stdout  # pipes, as asked for
        self.orders, self.answers = self.process.stdin, self.process.stdout

    def go(self) -> dict[str, Any]:
        """Does one unit of work; returns at least wall and cpu (seconds) and peak_mb, the process's peak memory so far."""
        try:
            self.orders.write("go\n")
            self.orders.flush()
            line = self.answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.said.seek(0)
            raise SystemExit(f"benchmark: {self.name} ended with {self.process.wait()}:\n{self.said.read().decode()[-3000:]}")
        return json.loads(line)

    def __enter__(self) -> Leg:
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the leg's input, upon which it ends."""
        self.orders.close()
        self.answers.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.said.close()


def take_turns(legs: list[Leg], rounds: int, shown: str = "") -> dict[str, list[dict[str, Any]]]:
    """Each leg's answers over all rounds; the order of the legs reverses from round to round."""
    answers: dict[str, list[dict[str, Any]]] = {leg.name: [] for leg in legs}
    for number in range(rounds):
        for leg in legs if number % 2 == 0 else legs[::-1]:
            answers[leg.name].append(leg.go())
        if shown and sys.stderr.isatty():
            print(f"\r{shown}: round {number + 1} of {rounds}", end="\n" if number + 1 == rounds else "", file=sys.stderr)
    return answers


def random_llama(folder: Path, dtype: str, **shape: int) -> Path:
    """A checkpoint with random weights and the embedded base's tokenizer: speed does not depend on the weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    base = ROOT / "models/base/weights"
    folder.mkdir(parents=True)
    for path in base.iterdir():
        if path.name.startswith(("tokenizer", "chat_template")):
            shutil.copy(path, folder)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**config, "head_dim": None, "dtype": dtype, **shape}))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def write_params(path: Path, entry: dict[str, Any], **sections: dict[str, Any]) -> Path:
    """Writes params.yaml with changes: `entry` to the chosen model's entry, `sections` to the sections of these names."""
    from ruamel.yaml import YAML

    params = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["models"][params["model"]].update(entry)
    for name, changes in sections.items():
        params[name].update(changes)
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(params, file)
    return path


def lora_rank(params: Path) -> int:
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True).load(params.read_text(encoding="utf-8"))["lora"]["r"]


def random_rows(path: Path, kind: str, count: int, prompt: int, answer: int, vocabulary: int) -> Path:
    """Prepared rows of random ids and equal length: prompts (generate), with one answer (sft) or with two (dpo)."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            ids = [[rng.randrange(4, vocabulary) for _ in range(length)] for length in (prompt, answer, answer)]
            row = {
                "generate": {"prompt_ids": ids[0]},
                "sft": {"input_ids": ids[0] + ids[1], "labels": [-100] * prompt + ids[1]},
                "dpo": {"prompt_ids": ids[0], "chosen_ids": ids[1], "rejected_ids": ids[2]},
            }[kind]
            file.write(json.dumps({"id": str(number), **row}) + "\n")
    return path


# ---- The side that works ---------------------------------------------------------------------------------------------


class Word:
    """The leg's end of the pipe. All other standard output goes to standard error."""

    def __init__(self) -> None:
        self.line = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.settle: Callable[[], None] = lambda: None

    def wait(self) -> bool:
        """Waits for the next command; False if none will come."""
        heard = sys.stdin.readline().strip() == "go"
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return heard

    def report(self, **found: Any) -> None:
        """Reports the cost of the work since the command."""
        self.settle()
        spent = {"wall": time.perf_counter() - self.wall, "cpu": time.process_time() - self.cpu}
        self.line.write(json.dumps({**spent, "peak_mb": peak_mb(), **found}) + "\n")


def peak_mb() -> float:
    """Largest memory so far in MB (1e6 bytes): of the device where there is one of its own, else of the process."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_UNIT / 1e6


def work(leg: SimpleNamespace) -> None:
    """The life of a leg: imports, then one command for its start and one for each unit of work."""
    from aligner.model import runtime
    from aligner.model.loading import load_chat
    from aligner.run import params as parameters

    word = Word()
    names = sorted({name for stage in ("sft", "dpo", "generate") for name in script(stage).PARAMS})
    params = with_changes(parameters.load(names, Path(leg.params)), leg)
    started = runtime.start(params.model_entry, params.seed)
    for library in {"matmul": [], "generate": ["peft"]}.get(leg.kind, ["trl.trainer.sft_trainer", "trl.trainer.dpo_trainer"]):
        importlib.import_module(library)  # before the first command: imports are not timed
    if started.device == "cuda":
        import torch

        word.settle = torch.cuda.synchronize
    rows = [json.loads(line) for line in Path(leg.rows).read_text(encoding="utf-8").splitlines()] if leg.rows else []
    known = SimpleNamespace(params=params, runtime=started, chat=load_chat(params.model_entry), rows=rows)
    if word.wait():
        {"sft": train, "dpo": train, "generate": answer, "matmul": multiply}[leg.kind](leg, known, word)


def with_changes(params: StageParams, leg: SimpleNamespace) -> StageParams:
    """The parameters of a leg: its threads, every step logged, and for `stock` and `helped` none of our changes to the trainer.

    `helped` has transformers' length-balanced sampler, which needs two micro-batches a step at least.
    """
    entry: dict[str, Any] = {"threads": leg.threads}
    changes: dict[str, dict[str, Any]] = {"sft": {"logging_steps": 1}, "dpo": {"logging_steps": 1}}
    if leg.way in ("stock", "helped"):
        entry |= {"padding_free": False, "torch_compile": False}
    if leg.way == "helped":
        changes["sft"]["train_sampling_strategy"] = "batch_rebalance"
        batch = params.model_entry.sft
        if batch.gradient_accumulation_steps == 1:
            halved = {"per_device_train_batch_size": batch.per_device_train_batch_size // 2, "gradient_accumulation_steps": 2}
            entry["sft"] = batch.model_copy(update=halved)
    sections = {stage: getattr(params, stage).model_copy(update=values) for stage, values in changes.items()}
    return params.model_copy(update={"model_entry": params.model_entry.model_copy(update=entry), **sections})


def script(stage: str):
    """A stage's script as a module; its folder, src, is on the path."""
    return importlib.import_module(stage)


def train(leg: SimpleNamespace, known: SimpleNamespace, word: Word) -> None:
    """A run of a TRL trainer that waits for a command before each optimiser step.

    A step includes fetching and collating, forward, backward, the optimiser, and the log.
    """
    from transformers import PrinterCallback, TrainerCallback

    from aligner.model import runtime
    from aligner.training import setup

    if leg.way != "stock":
        runtime.keep_freed_memory()
    if leg.way == "ours":
        runtime.score_supervised_tokens_only()
    trainer, reference = {"sft": sft_trainer, "dpo": dpo_trainer}[leg.kind](leg, known)
    seen: dict[str, Any] = {"rows": [], "slots": 0}
    if leg.way != "ours":
        observe(trainer, seen)

    class Turns(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            word.report(reference=reference)
            control.should_training_stop = not word.wait()

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs:
                word.report(loss=logs["loss"], **seen)
                seen.update(rows=[], slots=0)
                control.should_training_stop = not word.wait()

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Turns())
    if leg.way == "ours":
        setup.keep_input_dtype(trainer)
    trainer.train()


def observe(trainer, seen: dict[str, Any]) -> None:
    """Records the lengths in each micro-batch of a stock trainer: (prompt, answer), or (prompt, chosen, rejected) for DPO.

    Ours sees the same samples, as equal losses show, so these lengths count its work too.
    """
    stock = trainer.training_step

    def training_step(model, inputs, *rest, **named):
        whole = inputs["attention_mask"].sum(1).tolist()
        trained = inputs["completion_mask"] if "completion_mask" in inputs else inputs["labels"] != -100
        lengths = list(zip(whole, trained.sum(1).tolist(), strict=True))
        seen["slots"] += inputs["input_ids"].numel()
        if "completion_mask" not in inputs:
            seen["rows"] += [(tokens - answer, answer) for tokens, answer in lengths]
        else:
            half = len(lengths) // 2
            pairs = zip(lengths[:half], lengths[half:], strict=True)
            seen["rows"] += [(tokens - chosen, chosen, rejected) for (tokens, chosen), (_, rejected) in pairs]
        return stock(model, inputs, *rest, **named)

    trainer.training_step = training_step


def sft_trainer(leg: SimpleNamespace, known: SimpleNamespace):
    """SFT's trainer; `with_changes` has made it stock or ours. SFT has no reference pass."""
    return script("sft").build_trainer(known.params, known.runtime, known.chat, known.rows), None


def dpo_trainer(leg: SimpleNamespace, known: SimpleNamespace):
    """DPO's trainer, ours or stock, and the cost of its reference pass (TRL's is precompute_ref_log_probs)."""
    params, rows = known.params, known.rows
    policy = starting_policy(leg, known)
    if leg.way == "ours":
        from aligner.training import padding_free
        from aligner.training.log_probs import log_probabilities

        reference, spent = clocked(
            log_probabilities, policy, rows, known.chat.pad_id, unpadded=padding_free.fits(policy, params.model_entry)
        )
        return script("dpo").build_trainer(params, known.runtime, known.chat, policy, rows, reference), spent
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from aligner.training import setup

    stock_spent: dict[str, float] = {}

    class StockDPOTrainer(DPOTrainer):
        """TRL's trainer; the dataset has ids already, and its own reference pass is timed."""

        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

        def _precompute_ref_logps(self, *args, **kwargs):
            dataset, seconds = clocked(super()._precompute_ref_logps, *args, **kwargs)
            stock_spent.update(seconds)
            return dataset

    losses = {params.dpo.loss_type: 1.0} | ({"sft": params.dpo.sft_weight} if params.dpo.sft_weight else {})
    config = DPOConfig(
        beta=params.dpo.beta,
        loss_type=list(losses),
        loss_weights=list(losses.values()),
        label_smoothing=params.dpo.label_smoothing,
        precompute_ref_log_probs=True,
        **setup.training_arguments(params.dpo, params.model_entry.dpo, params.model_entry, params.seed, known.runtime),
    )
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    trainer = StockDPOTrainer(
        model=policy,
        args=config,
        train_dataset=Dataset.from_list([{column: row[column] for column in columns} for row in rows]),
        processing_class=setup.trainer_tokenizer(known.chat),
    )
    return trainer, stock_spent


def clocked(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, dict[str, float]]:
    """A function's result and its seconds; the result is in the process's memory, so a GPU has finished too."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = function(*args, **kwargs)
    return found, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def starting_policy(leg: SimpleNamespace, known: SimpleNamespace):
    """The base with the leg's adapter, or with a new one that is equal in all legs."""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    from aligner.model.loading import load_adapter, load_base

    base = load_base(known.params.model_entry, known.runtime)
    if leg.adapter:
        return load_adapter(base, Path(leg.adapter), trainable=True)
    set_seed(known.params.seed)
    return get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", bias="none", **known.params.lora.model_dump()))


def answer(leg: SimpleNamespace, known: SimpleNamespace, word: Word) -> None:
    """Answers all prompts: by the stage's own loop, or one at a time by transformers' generate on the same model."""
    generate = script("generate")
    adapter = Path(leg.adapter) if leg.adapter else None
    model = generate.load_model(known.params.model_entry, known.runtime, known.chat, adapter)
    settings = generate.generation_settings(known.params.generate, known.chat)
    word.report()
    while word.wait():
        if leg.way == "ours":
            answers = dict(generate.answer_all(model, known.rows, known.chat, known.params, "benchmark"))
        else:
            answers = {row["id"]: one_answer(generate, model, row, known.chat, settings) for row in known.rows}
        word.report(answers=answers)


def one_answer(generate, model, row: dict[str, Any], chat, settings) -> dict[str, Any]:
    """The answer to one prompt, as the stage would write it."""
    import torch

    ids = torch.tensor([row["prompt_ids"]], device=model.device)
    with torch.inference_mode():
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return generate.answer_row(row, output[0, ids.shape[1] :].tolist(), chat, settings.eos_token_id)


def multiply(leg: SimpleNamespace, known: SimpleNamespace, word: Word) -> None:
    """Square matrix products in the run's precision, which measure the machine's peak; reports their FLOPs."""
    import torch

    side = MATMUL_SIDE[known.runtime.device]
    left, right = (torch.randn(side, side, device=known.runtime.device).to(known.runtime.dtype) for _ in range(2))
    product = left @ right
    word.report()
    while word.wait():
        for _ in range(MATMULS):
            torch.mm(left, right, out=product)
        word.report(flops=MATMULS * 2 * side**3)


if __name__ == "__main__":
    work(SimpleNamespace(**{"rows": None, "adapter": None, "way": None, **json.loads(sys.argv[1])}))
