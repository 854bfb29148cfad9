"""Small samples of the layouts that convert reads, written by hand: the tests run them, and docs/data-formats.md lists them."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]


class Case(NamedTuple):
    """One layout: its name, a project that uses it, the file, what the rows become, the rows, and the first row that comes out.

    `out` is the number of rows that come out; the expected row is compared without its id.
    """

    name: str
    source: str
    file: str
    to: str
    rows: list[Row]
    out: int
    expected: Row
    options: tuple[str, ...] = ()
    layout: str = ""

    @property
    def command(self) -> str:
        options = "".join(f" {option}" for option in self.options)
        return f"python src/convert.py {self.file} --to {self.to}{options} --out rows.jsonl"


def said(role: str, content: Any, **more: Any) -> Row:
    return {"role": role, "content": content, **more}


def gpt(speaker: str, value: Any) -> Row:
    return {"from": speaker, "value": value}


U, A = said("user", "q"), said("assistant", "a")
GOOD, BAD = said("assistant", "good"), said("assistant", "bad")
PLAIN = {"messages": [U, A]}
SYSTEM = {"messages": [said("system", "s"), U, A]}
LONGER = {"messages": [U, A, said("user", "q2"), said("assistant", "a2")]}
PAIR = {"prompt": [U], "chosen": [GOOD], "rejected": [BAD]}
SYSTEM_PAIR = {"prompt": [said("system", "s"), U], "chosen": [GOOD], "rejected": [BAD]}
WHOLE_PAIR = {"chosen": [U, GOOD], "rejected": [U, BAD]}
LABELLED = {"prompt": [U], "completion": [A], "label": True}
HH = "\n\nHuman: q\n\nAssistant: a\n\nHuman: q2\n\nAssistant: "
EARLIER = [U, A, said("user", "q2")]

CASES = [
    # ---- examples
    Case("Stanford Alpaca, one JSON array", "tatsu-lab/stanford_alpaca", "alpaca_data.json", "sft",
         [{"instruction": "q", "input": "", "output": "a"}, {"instruction": "Add.", "input": "1 2", "output": "3"}], 2, PLAIN),
    Case("Alpaca, gzip", "any", "alpaca.jsonl.gz", "sft", [{"instruction": "Add.", "input": "1 2", "output": "3"}], 1,
         {"messages": [said("user", "Add.\n\n1 2"), said("assistant", "3")]}),
    Case("Alpaca with system and history", "LLaMA-Factory", "alpaca_demo.json", "sft",
         [{"instruction": "q2", "input": "", "output": "a2", "system": "s", "history": [["q", "a"]]}], 1,
         {"messages": [said("system", "s"), *LONGER["messages"]]}),
    Case("Alpaca with response", "Axolotl (alpaca_chat)", "rows.jsonl", "sft", [{"instruction": "q", "response": "a"}], 1, PLAIN),
    Case("OpenAI fine-tuning with a weight", "OpenAI", "train.jsonl", "sft",
         [{"messages": [U, said("assistant", "a", weight=0), said("user", "q2"), said("assistant", "a2", weight=1)]},
          {"messages": [U, A]}], 2,
         {"messages": [U, said("assistant", "a", weight=0), said("user", "q2"), said("assistant", "a2", weight=1)]}),
    Case("OpenAI, role developer", "OpenAI", "train.jsonl", "sft", [{"messages": [said("developer", "s"), U, A]}], 1, SYSTEM),
    Case("OpenAI, text parts", "OpenAI, Anthropic", "parts.jsonl", "sft",
         [{"messages": [said("user", [{"type": "text", "text": "q"}]), A]},
          {"messages": [said("user", [{"type": "image_url", "image_url": {"url": "x"}}]), A]}], 1, PLAIN),
    Case("OpenAI, tool calls left out", "OpenAI", "tools.jsonl", "sft",
         [{"messages": [U, said("assistant", None, tool_calls=[{"id": "1"}]), said("tool", "4", tool_call_id="1"), A]},
          {"messages": [U, A]}], 1, PLAIN),
    Case("messages with a system key", "Anthropic (Bedrock)", "rows.jsonl", "sft",
         [{"system": "s", "messages": [U, A]}], 1, SYSTEM),
    Case("chat_template with train", "Axolotl", "rows.jsonl", "sft",
         [{"messages": [U, said("assistant", "a", train=False), said("user", "q2"), said("assistant", "a2")]}], 1,
         {"messages": [U, said("assistant", "a", train=False), said("user", "q2"), said("assistant", "a2")]}),
    Case("ShareGPT", "Vicuna, FastChat", "sharegpt.json", "sft",
         [{"id": "x", "conversations": [gpt("human", "q"), gpt("gpt", "a"), gpt("human", "q2"), gpt("gpt", "a2")]}], 1, LONGER),
    Case("ShareGPT with system and tools", "LLaMA-Factory", "glaive_toolcall_demo.json", "sft",
         [{"conversations": [gpt("human", "q"), gpt("gpt", "a")], "system": "s", "tools": ""},
          {"conversations": [gpt("human", "q"), gpt("function_call", "{}"), gpt("observation", "4"), gpt("gpt", "a")]}],
         1, SYSTEM),
    Case("dataset_info.json with tags", "LLaMA-Factory", "dataset_info.json", "sft",
         [{"turns": [{"who": "person", "what": "q"}, {"who": "machine", "what": "a"}]}], 1, PLAIN, ("--dataset mine",)),
    Case("prompt and completion as texts", "TRL", "rows.jsonl", "sft", [{"prompt": "q", "completion": "a"}], 1, PLAIN),
    Case("prompt and completion as messages", "TRL", "rows.jsonl", "sft", [{"prompt": [U], "completion": [A]}], 1, PLAIN),
    Case("Dolly", "databricks-dolly-15k", "dolly.jsonl", "sft",
         [{"instruction": "q", "context": "c", "response": "a", "category": "closed_qa"}], 1,
         {"messages": [said("user", "q\n\nc"), A]}),
    Case("GSM8K, Parquet", "openai/gsm8k", "gsm8k.parquet", "sft", [{"question": "q", "answer": "a"}], 1, PLAIN),
    Case("OpenOrca, Parquet", "Open-Orca/OpenOrca", "orca.parquet", "sft",
         [{"id": "cot.1", "system_prompt": "s", "question": "q", "response": "a"},
          {"id": "cot.2", "system_prompt": "", "question": "q", "response": "a"}], 2, SYSTEM),
    Case("query and response", "ms-swift", "swift.jsonl", "sft",
         [{"system": "s", "query": "q", "response": "a", "history": []}], 1, SYSTEM),
    Case("UltraChat", "UltraChat", "ultrachat.jsonl", "sft", [{"id": "0", "data": ["q", "a", "q2", "a2"]}], 1, LONGER),
    Case("Gemini contents", "Vertex AI", "gemini.jsonl", "sft",
         [{"systemInstruction": {"role": "system", "parts": [{"text": "s"}]},
           "contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}]}], 1, SYSTEM),
    Case("CSV", "any", "rows.csv", "sft", [{"prompt": "q", "response": "a"}, {"prompt": "NA", "response": "1"}], 2, PLAIN),
    Case("any column names", "any", "rows.jsonl.xz", "sft", [{"ask": "q", "tell": "a"}], 1, PLAIN,
         ("--map question=ask", "--map answer=tell")),
    Case("a folder that datasets saved", "datasets", "saved", "sft", [{"messages": [U, A], "source": "x"}], 1, PLAIN),
    Case("a split of a saved data set", "datasets", "splits", "sft", [PLAIN], 1, PLAIN, ("--split test",)),
    Case("a folder of files", "any", "folder", "sft", [PLAIN, PLAIN], 2, PLAIN),
    # ---- pairs
    Case("HH-RLHF transcripts", "Anthropic/hh-rlhf", "train.jsonl.gz", "pairs",
         [{"chosen": HH + "good", "rejected": HH + "bad"}], 1,
         {"chosen": [*EARLIER, GOOD], "rejected": [*EARLIER, BAD]}),
    Case("prompt, chosen, rejected as texts", "TRL", "rows.jsonl", "pairs",
         [{"prompt": "q", "chosen": "good", "rejected": "bad"}, {"prompt": "q", "chosen": "same", "rejected": "same"}], 1, PAIR),
    Case("answers that repeat the prompt", "TRL", "rows.jsonl", "pairs",
         [{"prompt": "What is it?", "chosen": "What is it? good", "rejected": "What is it? bad"}], 1,
         {"prompt": [said("user", "What is it?")],
          "chosen": [said("assistant", " good")], "rejected": [said("assistant", " bad")]}),
    Case("implicit prompt as texts", "TRL", "rows.jsonl", "pairs",
         [{"chosen": "The sky is blue.", "rejected": "The sky is black."}], 1,
         {"prompt": [said("user", "The sky is ")],
          "chosen": [said("assistant", "blue.")], "rejected": [said("assistant", "black.")]}),
    Case("implicit prompt as messages", "TRL", "rows.jsonl", "pairs", [WHOLE_PAIR], 1, WHOLE_PAIR),
    Case("UltraFeedback, Parquet", "HuggingFaceH4/ultrafeedback_binarized", "ultrafeedback.parquet", "pairs",
         [{"prompt": "q", "prompt_id": "p", **WHOLE_PAIR, "score_chosen": 9.0, "score_rejected": 2.0}], 1,
         {"prompt": "q", **WHOLE_PAIR}),
    Case("ShareGPT pairs", "LLaMA-Factory", "dpo_en_demo.json", "pairs",
         [{"conversations": [gpt("human", "q")], "chosen": gpt("gpt", "good"), "rejected": gpt("gpt", "bad")}], 1, PAIR),
    Case("Alpaca pairs", "LLaMA-Factory", "dpo.json", "pairs",
         [{"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"}], 1, PAIR),
    Case("Orca pairs", "Intel/orca_dpo_pairs", "orca.jsonl", "pairs",
         [{"system": "s", "question": "q", "chosen": "good", "rejected": "bad"}], 1, SYSTEM_PAIR),
    Case("chosen_response", "Axolotl (chatml.argilla)", "rows.jsonl", "pairs",
         [{"instruction": "q", "chosen_response": "good", "rejected_response": "bad"}], 1, PAIR),
    Case("OpenAI preferences", "OpenAI", "preferences.jsonl", "pairs",
         [{"input": {"messages": [U], "tools": []}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}], 1, PAIR),
    Case("SafeRLHF", "PKU-Alignment/PKU-SafeRLHF", "safe.jsonl.bz2", "pairs",
         [{"prompt": "q", "response_0": "bad", "response_1": "good", "better_response_id": 1}], 1, PAIR),
    Case("SHP", "stanfordnlp/SHP", "shp.jsonl", "pairs",
         [{"history": "q", "human_ref_A": "good", "human_ref_B": "bad", "labels": 1}], 1, PAIR),
    Case("StackExchange pairs", "lvwerra/stack-exchange-paired", "stack.jsonl", "pairs",
         [{"question": "q", "response_j": "good", "response_k": "bad"}], 1, PAIR),
    Case("arena battles", "lmsys/chatbot_arena_conversations", "arena.jsonl", "pairs",
         [{"conversation_a": [U, BAD], "conversation_b": [U, GOOD], "winner": "model_b"},
          {"conversation_a": [U, BAD], "conversation_b": [U, GOOD], "winner": "tie"}], 1, WHOLE_PAIR),
    # ---- labelled answers
    Case("KTO", "TRL", "kto.jsonl", "unpaired",
         [{"prompt": "q", "completion": "a", "label": True}, {"prompt": "q", "completion": "b", "label": False}], 2, LABELLED),
    Case("KTO tags", "LLaMA-Factory", "kto_en_demo.json", "unpaired", [{"messages": [U, A], "kto_tag": True}], 1, LABELLED),
    Case("labelled answers from pairs", "any pairs", "rows.jsonl", "unpaired",
         [{"prompt": "q", "chosen": "a", "rejected": "b"}], 2, LABELLED),
    Case("good answers as examples", "TRL (KTO)", "kto.jsonl", "sft",
         [{"prompt": "q", "completion": "a", "label": True}, {"prompt": "q", "completion": "b", "label": False}], 1, PLAIN),
    # ---- eval prompts
    Case("AlpacaEval", "tatsu-lab/alpaca_eval", "alpaca_eval.json", "eval",
         [{"instruction": "q", "output": "a", "generator": "x", "dataset": "koala"}], 1, {"prompt": "q", "topic": "koala"}),
    Case("MT-Bench", "FastChat", "question.jsonl", "eval",
         [{"question_id": 81, "category": "writing", "turns": ["q", "q2"]}], 1, {"prompt": "q", "topic": "writing"}),
    Case("prompts alone", "any", "prompts.csv", "eval", [{"prompt": "q"}], 1, {"prompt": "q", "topic": "all"}),
]  # fmt: skip


def write_source(case: Case, folder: Path) -> Path:
    """Writes the rows of a case as the file or folder that it names."""
    path, lines = folder / case.file, "".join(json.dumps(row) + "\n" for row in case.rows).encode()
    packed = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}
    if path.name == "dataset_info.json":
        columns, tags = (
            {"messages": "turns"},
            {"role_tag": "who", "content_tag": "what", "user_tag": "person", "assistant_tag": "machine"},
        )
        entry = {"file_name": "mine.json", "formatting": "sharegpt", "columns": columns, "tags": tags}
        (folder / "mine.json").write_text(json.dumps(case.rows), encoding="utf-8")
        path.write_text(json.dumps({"mine": entry, "other": {"hf_hub_url": "a/b"}}), encoding="utf-8")
    elif path.name in ("saved", "splits"):
        save_dataset(case.rows, path, path.name == "splits")
    elif path.name == "folder":
        path.mkdir()
        (path / "b.jsonl").write_bytes(lines.splitlines(True)[1])
        (path / "a.json").write_text(json.dumps(case.rows[:1]), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(case.rows, indent=1), encoding="utf-8")
    elif path.suffix == ".parquet":
        from datasets import Dataset

        Dataset.from_list(case.rows).to_parquet(path)
    elif path.suffix == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(case.rows[0]))
        writer.writeheader()
        writer.writerows(case.rows)
        path.write_text(text.getvalue(), encoding="utf-8")
    else:
        path.write_bytes(packed.get(path.suffix, bytes)(lines))
    return path


def save_dataset(rows: list[Row], path: Path, splits: bool) -> None:
    from datasets import Dataset, DatasetDict

    saved = Dataset.from_list(rows)
    if splits:
        DatasetDict(train=Dataset.from_list([rows[0]] * 3), test=saved).save_to_disk(path)
    else:
        saved.save_to_disk(path)
