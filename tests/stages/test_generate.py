"""generate: the answers of a batch equal those of a plain loop over single prompts, and end at the end token."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.workspace import Workspace, with_entry

import generate
from aligner.model import runtime
from aligner.model.batches import batches
from aligner.model.generation import complete, preallocated_cache
from aligner.model.loading import base_fingerprint, load_adapter, load_base, load_chat, save_adapter
from aligner.run import params as parameters
from aligner.run.errors import InputError

MODELS = ["mini", "zephyr_llama", "qwen2", "gpt2"]
NEW_TOKENS = 12


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    return Workspace(tmp_path, monkeypatch, **{"generate.max_new_tokens": NEW_TOKENS})


def setting(workspace, **changes):
    """The stage's params, and the runtime and chat that main derives from them."""
    workspace.params.update(changes)
    params = parameters.load(generate.PARAMS)
    return SimpleNamespace(
        params=params, runtime=runtime.start(params.model_entry, params.seed), chat=load_chat(params.model_entry)
    )


def prepared(workspace, **changes):
    """The same, with prompts of very different lengths and the base model."""
    given = setting(workspace, **changes)
    given.prompts = [prompt(given.chat, text, n) for n, text in enumerate(texts_of_many_lengths())]
    given.model = generate.load_model(given.params.model_entry, given.runtime, given.chat, None)
    return given


def texts_of_many_lengths():
    return [f"Say {n}: " + "the mean of the sum, " * (n % 4 * 3) + "?" for n in range(9)]


def prompt(chat, text, n):
    return {"id": f"e{n}", "prompt_ids": chat.prompt((("user", text),))}


def plain_loop(model, ids, ends, most, penalty=1.0):
    """Textbook greedy decoding of one prompt, without cache and padding: the new ids, without the end token.

    Keskar et al. 2019: the logit of each token of the answer so far is divided by the penalty, or multiplied if it is negative.
    """
    new = []
    while len(new) < most:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids + new])).logits[0, -1]
        for said in set(new):
            logits[said] = logits[said] / penalty if logits[said] > 0 else logits[said] * penalty
        following = logits.argmax().item()
        if following in ends:
            break
        new.append(following)
    return new


def answers_of(given):
    return dict(generate.answer_all(given.model, given.prompts, given.chat, given.params, "base"))


def with_another_end(given):
    """Generation settings with end tokens that the model often generates."""
    settings = generate.generation_settings(given.params.generate, given.chat)
    said = [plain_loop(given.model, row["prompt_ids"], [], NEW_TOKENS) for row in given.prompts]
    settings.eos_token_id = [said[0][3], said[5][7]]
    return settings


# ---- Greedy answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [1, 1.1, 2])
@pytest.mark.parametrize("model", MODELS)
def test_greedy_answers_equal_a_plain_loop_whatever_the_batch_size(tmp_path, monkeypatch, model, penalty):
    changes = {"generate.max_new_tokens": NEW_TOKENS, "generate.repetition_penalty": penalty}
    changes["generate.no_repeat_ngram_size"] = 0
    workspace = Workspace(tmp_path, monkeypatch, model=model, **changes)
    given = prepared(workspace)
    ends = generate.generation_settings(given.params.generate, given.chat).eos_token_id
    expected = {}
    for row in given.prompts:
        new = plain_loop(given.model, row["prompt_ids"], ends, NEW_TOKENS, penalty)
        answer = {"id": row["id"], "answer": given.chat.decode(new).strip(), "stop": "end" if len(new) < NEW_TOKENS else "length"}
        expected[row["id"]] = {**answer, "prompt_tokens": len(row["prompt_ids"]), "answer_tokens": len(new)}
    for size in (1, 2, 5, 50):
        given.params = with_entry(given.params, generate={"batch_size": size})
        assert answers_of(given) == expected
    assert len({row["answer"] for row in expected.values()}) > 2


@pytest.mark.parametrize("model", MODELS)
def test_no_run_of_tokens_comes_twice_in_an_answer(tmp_path, monkeypatch, model):
    changes = {"generate.max_new_tokens": 40, "generate.repetition_penalty": 1, "generate.no_repeat_ngram_size": 3}
    given = prepared(Workspace(tmp_path, monkeypatch, model=model, **changes))
    settings = generate.generation_settings(given.params.generate, given.chat)
    settings.eos_token_id = []
    for new in complete(given.model, [row["prompt_ids"] for row in given.prompts], given.chat.pad_id, settings):
        runs = list(zip(new, new[1:], new[2:], strict=False))
        assert len(set(runs)) == len(runs)


@pytest.mark.parametrize("model", MODELS)
def test_every_row_of_a_batch_ends_for_itself(tmp_path, monkeypatch, model):
    """Some answers of a batch end early: each equals the answer alone, followed by an end token and padding."""
    changes = {"generate.max_new_tokens": NEW_TOKENS, "generate.no_repeat_ngram_size": 0}
    given = prepared(Workspace(tmp_path, monkeypatch, model=model, **changes))
    settings = with_another_end(given)
    lengths = set()
    found = complete(given.model, [row["prompt_ids"] for row in given.prompts], given.chat.pad_id, settings)
    for row, new in zip(given.prompts, found, strict=True):
        expected = plain_loop(given.model, row["prompt_ids"], settings.eos_token_id, NEW_TOKENS)
        assert new[: len(expected)] == expected
        if len(expected) < NEW_TOKENS:
            assert new[len(expected)] in settings.eos_token_id
            assert set(new[len(expected) + 1 :]) <= {given.chat.pad_id}
        lengths.add(len(expected))
    assert len(lengths) > 1


@pytest.mark.parametrize("model", MODELS)
def test_left_padding_changes_no_answer(tmp_path, monkeypatch, model):
    """Beside a long prompt, a short one has the same next-token scores and the same answer as alone."""
    given = prepared(Workspace(tmp_path, monkeypatch, model=model, **{"generate.max_new_tokens": NEW_TOKENS}))
    settings = generate.generation_settings(given.params.generate, given.chat)
    settings.output_scores = settings.return_dict_in_generate = True
    seen = {}
    model_generate = given.model.generate

    def record(**arguments):
        output = model_generate(**arguments)
        seen["scores"] = torch.stack(output.scores)
        return output.sequences

    given.model.generate = record
    rows = sorted((row["prompt_ids"] for row in given.prompts), key=len)
    short, long = rows[0], rows[-1]
    assert len(long) > 2 * len(short)
    alone = complete(given.model, [short], given.chat.pad_id, settings)[0]
    scores_alone = seen["scores"][:, 0]
    beside = complete(given.model, [long, short], given.chat.pad_id, settings)[1]
    assert beside[: len(alone)] == alone
    torch.testing.assert_close(seen["scores"][: len(scores_alone), 1], scores_alone, rtol=1e-4, atol=1e-5)


def test_complete_pads_on_the_left_and_masks_the_padding(workspace):
    """Prompts 7, 8, 9 and 4 with padding 0 become 7 8 9 and 0 0 4."""
    from transformers import LlamaConfig

    seen, settings = {}, SimpleNamespace(max_new_tokens=2)

    class Echo:
        device, config = "cpu", LlamaConfig(num_hidden_layers=1)

        def generate(self, input_ids, attention_mask, generation_config, past_key_values, logits_processor):
            seen.update(ids=input_ids.tolist(), mask=attention_mask.tolist(), settings=generation_config)
            assert not logits_processor
            return torch.cat([input_ids, torch.tensor([[1, 2], [3, 0]])], dim=1)

    assert complete(Echo(), [[7, 8, 9], [4]], 0, settings) == [[1, 2], [3, 0]]
    assert seen == {"ids": [[7, 8, 9], [0, 0, 4]], "mask": [[1, 1, 1], [0, 0, 1]], "settings": settings}


def test_a_cache_with_room_holds_what_transformers_own_holds():
    from transformers import DynamicCache, LlamaConfig

    config, states = LlamaConfig(num_hidden_layers=1), torch.randn(2, 3, 2, 7, 4)
    preallocated, plain = preallocated_cache(config, 7), DynamicCache(config=config)
    for start, end in ((0, 4), (4, 5), (5, 7)):
        found, expected = (cache.update(*states[:, :, :, start:end], 0) for cache in (preallocated, plain))
        assert all(map(torch.equal, found, expected))
        assert preallocated.get_seq_length() == plain.get_seq_length() == end


# ---- Where an answer stops --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("new", "stop", "tokens"),
    [
        ([10, 11, 12], "length", 3),
        ([10, 11, "end"], "end", 2),
        (["end", 0, 0], "end", 0),
        ([10, "end", 11], "end", 1),
        ([10, "other end", 11, "end"], "end", 1),
    ],
)
def test_an_answer_is_cut_at_its_first_end_token(workspace, new, stop, tokens):
    chat = setting(workspace).chat
    ends = {"end": chat.end_id, "other end": 7}
    ids = [ends.get(id, id) for id in new]
    row = generate.answer_row({"id": "e1", "prompt_ids": [1, 2, 3, 4]}, ids, chat, list(ends.values()))
    answer = chat.decode(ids[:tokens]).strip()
    assert row == {"id": "e1", "answer": answer, "stop": stop, "prompt_tokens": 4, "answer_tokens": tokens}


def test_the_end_tokens_are_the_templates_and_the_models_own(workspace):
    chat = setting(workspace).chat
    other = SimpleNamespace(end_id=chat.end_id, pad_id=chat.pad_id, eos_token="<|pad|>", tokenizer=chat.tokenizer)
    params = parameters.load(generate.PARAMS).generate
    assert generate.generation_settings(params, chat).eos_token_id == [chat.end_id]
    assert generate.generation_settings(params, other).eos_token_id == sorted([chat.end_id, chat.pad_id])


def test_the_rows_written_stand_in_the_order_of_the_prompts(workspace):
    workspace.run("prepare")
    run = workspace.run("generate", "base")
    rows = workspace.rows("data/generated/base.jsonl")
    prompts = workspace.rows("data/prepared/prompts.jsonl")
    assert [row["id"] for row in rows] == [row["id"] for row in prompts]
    assert [row["prompt_tokens"] for row in rows] == [len(row["prompt_ids"]) for row in prompts]
    assert all(row["answer_tokens"] == NEW_TOKENS for row in rows if row["stop"] == "length")
    assert list(rows[0]) == ["id", "answer", "stop", "prompt_tokens", "answer_tokens"]
    assert run.fields["answers"] == 12


# ---- Sampling ---------------------------------------------------------------------------------------------------------


def sampled(workspace, **changes):
    workspace.params.update(changes)
    workspace.run("generate", "base")
    return Path("data/generated/base.jsonl").read_bytes()


def test_sampling_follows_the_seed(workspace):
    workspace.run("prepare")
    workspace.params["generate.do_sample"] = True
    first, other, again = (sampled(workspace, seed=seed) for seed in (17, 18, 17))
    assert first == again != other


def test_greedy_answers_do_not_depend_on_the_seed(workspace):
    workspace.run("prepare")
    assert sampled(workspace, seed=17) == sampled(workspace, seed=18)


@pytest.mark.parametrize("values", [{"temperature": 0.001}, {"top_p": 1e-6}])
def test_sampling_at_its_limit_is_greedy(workspace, values):
    """A temperature near 0 leaves only the likeliest token, and so does a tiny top_p."""
    workspace.run("prepare")
    greedy = sampled(workspace)
    changes = {"generate.temperature": 5, "generate.top_p": 1, **{f"generate.{key}": value for key, value in values.items()}}
    assert sampled(workspace, **{"generate.do_sample": True, **changes}) == greedy
    assert sampled(workspace, **{"generate.temperature": 5, "generate.top_p": 1}) != greedy


def test_the_models_own_generation_settings_play_no_part(workspace):
    """A generation_config.json may set a repetition penalty, other end tokens or sampling; only params.yaml counts."""
    workspace.run("prepare")
    before = sampled(workspace)
    path = Path("models/base/weights/generation_config.json")
    said = setting(workspace).chat.tokenizer.encode(workspace.rows("data/generated/base.jsonl")[0]["answer"]).ids
    own = {"do_sample": True, "temperature": 9.0, "repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "min_new_tokens": 2}
    path.write_text(json.dumps({**own, "eos_token_id": said, "suppress_tokens": said, "max_length": 3}), encoding="utf-8")
    assert sampled(workspace) == before


# ---- Room, adapters, provenance -----------------------------------------------------------------------------------------


def test_an_answer_must_fit_behind_the_longest_prompt():
    """With 512 positions, a prompt of 500 tokens leaves 12."""
    rows = [{"prompt_ids": [1] * length} for length in (3, 500, 7)]
    generate.check_room(512, rows, 12)
    with pytest.raises(InputError, match=r"generate\.max_new_tokens is 13, .* 500 tokens .* 512 positions; set it to 12 or less"):
        generate.check_room(512, rows, 13)


def test_too_long_an_answer_is_refused_before_anything_is_written(workspace):
    workspace.run("prepare")
    workspace.params["generate.max_new_tokens"] = 500
    with pytest.raises(InputError, match="generate.max_new_tokens is 500"):
        workspace.run("generate", "base")
    assert not Path("data/generated").exists()


def write_adapter(given, folder):
    """Writes an adapter with random weights, whose effect is large."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(load_base(given.params.model_entry, given.runtime), config)
    provenance = {"base": base_fingerprint(given.params.model_entry), "chat": given.chat.fingerprint}
    save_adapter(model, folder, given.params.model_entry.path, provenance)


@pytest.mark.parametrize("model", MODELS)
def test_the_merged_adapter_answers_as_the_unmerged_one(tmp_path, monkeypatch, model):
    given = prepared(Workspace(tmp_path, monkeypatch, model=model, **{"generate.max_new_tokens": NEW_TOKENS}))
    plain = answers_of(given)
    write_adapter(given, Path("models/sft"))
    given.model = generate.load_model(given.params.model_entry, given.runtime, given.chat, Path("models/sft"))
    merged = answers_of(given)
    assert not [name for name, _ in given.model.named_parameters() if "lora" in name]
    given.model = load_adapter(load_base(given.params.model_entry, given.runtime), Path("models/sft")).eval()
    assert [name for name, _ in given.model.named_parameters() if "lora" in name]
    assert answers_of(given) == merged != plain


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_each_model_answers_with_its_own_adapter(workspace, name):
    workspace.run("prepare")
    given = setting(workspace)
    write_adapter(given, Path("models") / name)
    workspace.run("generate", name)
    workspace.run("generate", "base")
    assert workspace.files() >= {f"data/generated/{name}.jsonl", "data/generated/base.jsonl"}
    answers = [[row["answer"] for row in workspace.rows(f"data/generated/{model}.jsonl")] for model in (name, "base")]
    assert answers[0] != answers[1]


def test_an_adapter_of_another_base_is_refused(workspace):
    workspace.run("prepare")
    write_adapter(setting(workspace), Path("models/dpo"))
    path = Path("models/dpo/provenance.json")
    path.write_text(json.dumps(workspace.json(path) | {"base": "0" * 64}), encoding="utf-8")
    with pytest.raises(InputError, match=r"models/dpo was trained with another base"):
        workspace.run("generate", "dpo")


def test_prompts_of_another_chat_template_are_refused(workspace):
    workspace.run("prepare")
    template = Path("models/base/weights/chat_template.jinja")
    template.write_text(template.read_text(encoding="utf-8") + "{# other #}", encoding="utf-8")
    with pytest.raises(InputError, match="data/prepared was made with another tokenizer or chat template"):
        workspace.run("generate", "base")


def test_a_missing_adapter_is_named_with_the_way_to_it(workspace):
    workspace.run("prepare")
    with pytest.raises(InputError, match=r"models/sft/provenance\.json is missing.*dvc repro"):
        workspace.run("generate", "sft")


def test_batches_hold_every_prompt_once_and_like_lengths_together():
    rows = [{"prompt_ids": [0] * length} for length in (5, 1, 9, 5, 2, 9, 1)]
    found = batches(rows, 3, lambda row: len(row["prompt_ids"]))
    assert found == [[1, 6, 4], [0, 3, 2], [5]]
