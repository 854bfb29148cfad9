"""No model folder, data file or params.yaml can run code, write outside its place, or leak a secret.

Other files test: hostile data files (test_hostile_files, test_reader), pickles in checkpoints (test_checkpoints), pages and
reports (test_page, test_score), special tokens in texts (test_chat), pinned revisions and no pickle requested from the hub
(test_hub), the environment and run records (test_records).
"""

import ast
import io
import json
import os
import pickle
import re
import shutil
import socket
import struct
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from support.workspace import WEIGHTS, Workspace, checkpoint, eval_rows, pair_rows, refuse, sft_rows

from aligner.model.chat import Chat
from aligner.model.hub import TOKENIZER_FILES, model_folder
from aligner.model.loading import load_adapter, load_base, save_adapter
from aligner.run.errors import InputError
from aligner.run.params import read
from aligner.run.stage import run_stage

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for folder in ("src", "models/base", "tools") for path in sorted((ROOT / folder).rglob("*.py"))]
REVISION = "0123456789abcdef0123456789abcdef01234567"
EXPLODED = "exploded"  # the folder that every payload would create in the current directory
CODE = f"import os\nos.mkdir({EXPLODED!r})\nclass Config: pass\nclass Model: pass\n".encode()
# Edits params.yaml and keeps its comments: ruamel.yaml's round-trip loader, which constructs no Python object either.
ROUND_TRIP = {"tools/verify.py"}
AUTO_MAP = {"AutoConfig": "modeling_x.Config", "AutoModelForCausalLM": "modeling_x.Model"}


class Bomb:
    def __reduce__(self):
        return os.mkdir, (EXPLODED,)


def bomb() -> bytes:
    return pickle.dumps(Bomb(), protocol=2)


def torch_bomb() -> bytes:
    """The same in the format that torch.save writes."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", bomb())
        file.writestr("archive/version", "3\n")
    return archive.getvalue()


@pytest.fixture(autouse=True)
def nothing_happens(tmp_path, monkeypatch):
    """No test connects to anything, and no payload runs."""
    monkeypatch.chdir(tmp_path)
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    yield
    assert not Path(EXPLODED).exists()


def test_the_payloads_are_live():
    """The traps below are live: an unsafe load of one creates the folder."""
    for load in (lambda: pickle.loads(bomb()), lambda: exec(CODE, {})):
        load()
        Path(EXPLODED).rmdir()


# ---- What the code may call -----------------------------------------------------------------------------------------

FORBIDDEN = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "marshal.loads"}


def calls(path):
    """(dotted name, call) of every call in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call, name):
    return next((ast.unparse(each.value) for each in call.keywords if each.arg == name), None)


def check_call(name, call, file):
    """No call in our code may run a text, start a shell, or load a format that can hold code."""
    assert name not in FORBIDDEN and keyword(call, "shell") is None
    if name == "YAML" and file not in ROUND_TRIP:
        assert keyword(call, "typ") == "'safe'"
    if name.endswith("torch.load"):
        assert keyword(call, "weights_only") == "True"
    if name.endswith((".from_pretrained", ".load_adapter")) and name != "AutoTokenizer.from_pretrained":  # reads JSON alone
        assert keyword(call, "use_safetensors") == "True"
    assert keyword(call, "trust_remote_code") in (None, "False")


def test_security_no_source_evaluates_text(subtests):
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == {"src", "models", "tools"}
    for path in SOURCES:
        file = path.relative_to(ROOT).as_posix()
        for name, call in calls(path):
            with subtests.test(file=f"{file}:{call.lineno}", call=name):
                check_call(name, call, file)


def test_the_base_is_loaded_without_code_of_its_repository():
    source = ROOT / "src/aligner/model/loading.py"
    loaded = [call for name, call in calls(source) if name == "AutoModelForCausalLM.from_pretrained"]
    assert [keyword(call, "trust_remote_code") for call in loaded] == ["False"]


# ---- Model folders --------------------------------------------------------------------------------------------------

SAFE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    """A small model for tests to corrupt."""
    return Path(shutil.copytree(checkpoint("mini"), tmp_path / "model"))


def load(folder):
    import torch

    entry = SimpleNamespace(path=str(folder), revision=None, attn_implementation="eager", chat_template=None)
    return load_base(entry, SimpleNamespace(device="cpu", dtype=torch.float32))


def file(name, content):
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def config(**changes):
    def change(folder):
        file("config.json", json.loads((folder / "config.json").read_bytes()) | changes)(folder)

    return change


def instead(name, content):
    """The weights under another name, with another content."""

    def change(folder):
        (folder / SAFE).unlink()
        file(name, content)(folder)

    return change


def together(*changes):
    return lambda folder: [change(folder) for change in changes]


def index(shard):
    """Weights that an index locates in `shard`, beside a safetensors file that nothing requests."""
    return together(instead("other.safetensors", tensors({})), file(INDEX, {"weight_map": {"model.norm.weight": shard}}))


def tensors(header, body=b"", length=None):
    """A safetensors file: the header length, the header, and the bytes of the tensors."""
    header = json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def tensor(**changes):
    return tensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}, b"\0" * 8)


MODELS = {
    "a pickle as weights": (instead("pytorch_model.bin", bomb()), r"no \*.safetensors; weights in other formats can run code"),
    "a pickle of torch as weights": (instead("pytorch_model.bin", torch_bomb()), r"no \*.safetensors"),
    "a pickle beside other weights": (
        together(instead("other.safetensors", tensors({})), file("pytorch_model.bin", torch_bomb())),
        "no file named model.safetensors",
    ),
    "a pickle called safetensors": (file(SAFE, bomb()), "header too large"),
    "a pickle of torch called safetensors": (file(SAFE, torch_bomb()), "header too large"),
    "an index that names a pickle": (
        together(index("evil.bin"), file("evil.bin", torch_bomb())),
        "names 'evil.bin', which is no",
    ),
    "an index that leaves the folder": (index("../../secret.safetensors"), "is not a safetensors file in the same folder"),
    "an index that names the root": (index("/etc/passwd"), "is not a safetensors file in the same folder"),
    "an index that is a list": (together(index("x.safetensors"), file(INDEX, [])), "is not a valid weight index"),
    "an index that is no JSON": (together(index("x.safetensors"), file(INDEX, b"{")), "is not a valid weight index"),
    "a header of 8 exabytes": (file(SAFE, tensors({}, length=2**63)), "header too large"),
    "a header of a terabyte": (file(SAFE, tensors({}, length=2**40)), "header too large"),
    "no byte": (file(SAFE, b""), "header too small"),
    "a header of another type": (file(SAFE, tensors([])), "invalid JSON in header"),
    "a tensor beyond the file": (file(SAFE, tensor(data_offsets=[0, 10**12])), "cannot be loaded as a causal language model: "),
    "a shape beyond all numbers": (file(SAFE, tensor(shape=[2**62, 2**62])), "overflow"),
    "a negative shape": (file(SAFE, tensor(shape=[-1])), "invalid"),
    "a type that is none": (file(SAFE, tensor(dtype="X")), "cannot be loaded as a causal language model: "),
    "half of the file": (lambda folder: os.truncate(folder / SAFE, 20_000), "incomplete metadata|header"),
    "no tensor": (file(SAFE, tensors({})), r"lacks \d+ of the weights that its config.json asks for, such as"),
    "another architecture": (config(model_type="bert"), r"lacks \d+ of the weights"),
    "other shapes": (config(hidden_size=64), "have other shapes than its config.json says"),
    "code of a type of its own": (
        together(config(auto_map=AUTO_MAP, model_type="x"), file("modeling_x.py", CODE)),
        "custom code",
    ),
    "code without a type": (together(file("config.json", {"auto_map": AUTO_MAP}), file("modeling_x.py", CODE)), "custom code"),
    "code of another repository": (
        config(auto_map={"AutoModelForCausalLM": "evil/repo--modeling.Model"}, model_type="y"),
        "does not recognize this architecture",
    ),
    "a configuration of null": (file("config.json", b"null"), "cannot be loaded"),
    "a configuration of many brackets": (file("config.json", b"[" * 100_000), "recursion"),
    "a size that is a text": (config(hidden_size="x"), "Validation error for field 'hidden_size': TypeError: "),
    "a negative size": (config(hidden_size=-1), "not a multiple"),
    "no attention head": (config(num_attention_heads=0), "modulo"),
    "an activation that is a function": (config(hidden_act="os.system"), "os.system"),
    "a quantisation of another type": (config(quantization_config="x"), "cannot be loaded"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_hostile_or_damaged_model_is_one_error_and_runs_nothing(folder, name):
    change, message = MODELS[name]
    change(folder)
    with pytest.raises(InputError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value) and "trust_remote_code=True" not in str(caught.value)


def test_code_beside_a_known_architecture_is_passed_over(folder):
    together(config(auto_map=AUTO_MAP), file("modeling_x.py", CODE), file("pytorch_model.bin", torch_bomb()))(folder)
    assert type(load(folder)).__module__ == "transformers.models.llama.modeling_llama"


# ---- Adapters -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter on the small model, as a stage saves it."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapter")
    model = get_peft_model(load(checkpoint("mini")), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    save_adapter(model, folder, "base", {})
    return folder


def test_an_adapter_is_loaded_whole(adapter, folder):
    assert load_adapter(load(folder), adapter).peft_config["default"].r == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("adapter_model.bin", torch_bomb(), "adapter_model.safetensors is missing"),
        ("adapter_model.safetensors", torch_bomb(), r"is damaged \(Error while deserializing header"),
        ("adapter_model.safetensors", tensors({}), "does not hold the weights that adapter_config.json describes"),
    ],
)
def test_a_spoilt_adapter_is_one_error_and_runs_nothing(adapter, folder, tmp_path, name, content, message):
    spoilt = shutil.copytree(adapter, tmp_path / "adapter")
    (spoilt / "adapter_model.safetensors").unlink()
    (spoilt / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_adapter(load(folder), spoilt)


# ---- Tokenizers and chat templates ----------------------------------------------------------------------------------


def tokenizer(**changes):
    return lambda folder: file("tokenizer.json", json.loads((folder / "tokenizer.json").read_bytes()) | changes)(folder)


def tokenizer_config(**changes):
    def change(folder):
        (folder / "chat_template.jinja").unlink()
        file("tokenizer_config.json", json.loads((folder / "tokenizer_config.json").read_bytes()) | changes)(folder)

    return change


def as_folder(name):
    return lambda folder: ((folder / name).unlink(), (folder / name).mkdir())


TOKENIZERS = {
    "no JSON": (file("tokenizer.json", b"{"), "describes no tokenizer"),
    "a list": (file("tokenizer.json", []), "describes no tokenizer"),
    "many brackets": (file("tokenizer.json", b"[" * 100_000), "describes no tokenizer"),
    "Latin-1": (file("tokenizer.json", b'{"a":"\xe9"}'), "cannot be read as UTF-8 text"),
    "a folder": (as_folder("tokenizer.json"), "cannot be read"),
    "added tokens of a text": (tokenizer(added_tokens="x"), "describes no tokenizer"),
    "a model of null": (tokenizer(model=None), "describes no tokenizer"),
    "a negative id": (tokenizer(model={"type": "BPE", "vocab": {"a": -1}, "merges": []}), "describes no tokenizer"),
    "a broken regex": (tokenizer(normalizer={"type": "Replace", "pattern": {"Regex": "("}, "content": "x"}), "Oniguruma error"),
    "no JSON as settings": (file("tokenizer_config.json", b"{"), "is not valid JSON"),
    "many brackets as settings": (file("tokenizer_config.json", b"[" * 100_000), "is not valid JSON"),
    "a list as settings": (file("tokenizer_config.json", []), r"must hold a JSON object, not \[\]"),
    "an end token that is a number": (tokenizer_config(eos_token=3), "eos_token must be a text, got 3"),
    "an end token that is an empty object": (tokenizer_config(eos_token={}), r"eos_token must be a text, got \{\}"),
    "a padding token that is a list": (tokenizer_config(pad_token=["x"]), "pad_token must be a text"),
    "a template that is a number": (tokenizer_config(chat_template=3), "chat_template must be a text, got 3"),
    "a template that is an object": (tokenizer_config(chat_template={"default": "x"}), "chat_template must be a text"),
    "a configuration that is a list": (together(file("tokenizer_config.json", {}), file("config.json", [])), "must hold a JSON"),
    "an end id beyond all ids": (together(file("tokenizer_config.json", {}), config(eos_token_id=2**70)), "names an end token"),
    "a negative end id": (together(file("tokenizer_config.json", {}), config(eos_token_id=-1)), "names an end token"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_hostile_or_damaged_tokenizer_is_one_error(folder, name):
    change, message = TOKENIZERS[name]
    change(folder)
    with pytest.raises(InputError, match=message) as caught:
        Chat.load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


TEMPLATES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.mkdir('exploded') }}",
    "{{ lipsum.__globals__['os'].mkdir('exploded') }}",
    "{{ self.__init__.__globals__.__builtins__.__import__('os').mkdir('exploded') }}",
    "{{ raise_exception.__globals__['json'].__builtins__ }}",
    "{{ (''|attr('__class__')).mro() }}",
    "{{ '{0.__class__.__mro__}'.format('').x.y }}",
    "{{ messages[0].update({'content': 'x'}) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.mkdir('exploded') }}",
    "{% extends '/etc/passwd' %}",
    "{{ '{x}'.format() }}",
    "{{ '{0}'.format() }}",
    "{{ 'a'.encode('nowhere') }}",
    "{{ messages | nofilter }}",
    "{% for n in range(10 ** 9) %}{% endfor %}",
    "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{{ 'x' * 10 ** 18 }}",
    "{{ 10 ** 10000 }}",
]


@pytest.mark.parametrize("template", TEMPLATES, ids=range(len(TEMPLATES)))
def test_a_hostile_template_is_one_error_and_runs_nothing(folder, template):
    """The sandbox refuses them, or they omit a message; deep, wide and endless templates still terminate."""
    chat = replace(Chat.load(folder), template=template)
    with pytest.raises(InputError, match="the chat template (refuses|needs more memory)"):
        chat.prompt((("user", "Hi"),))


HIDDEN = ["''.__class__", "messages.__class__", "namespace(x=1).__class__", "config", "'{0.__class__}'.format(messages)"]


def test_security_unsafe_attributes_render_as_nothing(folder, subtests):
    """Unsafe attributes are undefined: they render as nothing, and no class name enters a prompt."""
    chat = Chat.load(folder)
    for expression in HIDDEN:
        spying = replace(chat, template="{{ " + expression + " }}" + chat.template)
        with subtests.test(expression=expression):
            assert spying.prompt((("user", "Hi"),)) == chat.prompt((("user", "Hi"),))


def test_security_text_of_messages_is_no_template(folder, subtests):
    chat = Chat.load(folder)
    for text in ("{{ 7 * 7 }}", "{% for x in y %}", "{0.__class__}", "%s%n", "${HOME}"):
        with subtests.test(text=text):
            assert text in chat.decode(chat.prompt((("user", text),)))


# ---- Names of models, and params.yaml -------------------------------------------------------------------------------


MODEL_NAMES = [
    "../../etc",
    "x/..",
    "../x",
    "-x/y",
    "--help/x",
    "$(id)/x",
    "a/b;rm -rf ~",
    "a/`id`",
    "a/b\nc",
    "a/b\x1b[31m",
    "a/\u202eb",
    "https://huggingface.co/a/b",
    "file:///etc/passwd",
    "a\\b/c",
    "a/b@main",
    "/etc/passwd",
    "~root/x",
    "C:/x",
]


def test_security_hostile_name_of_a_model_is_refused_before_anything_is_asked(monkeypatch, subtests):
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    for path in MODEL_NAMES:
        with (
            subtests.test(path=path),
            pytest.raises(InputError, match="is missing|is an address|is neither a folder nor a Hugging Face repository"),
        ):
            model_folder(path, REVISION, TOKENIZER_FILES)


def test_security_command_of_an_error_is_safe_to_copy(subtests):
    for path in ("a b/c d/e", "./x;id", "../$(id)", "data/x`id`"):
        with subtests.test(path=path):
            with pytest.raises(InputError) as caught:
                model_folder(path, None, TOKENIZER_FILES)
            assert str(caught.value).endswith(f"git checkout -- '{path}'")


@pytest.mark.parametrize(
    "content",
    [
        "model: !!python/object/apply:os.mkdir ['exploded']",
        "model: !!python/object/new:os.mkdir ['exploded']",
        "model: !<tag:yaml.org,2002:python/object/apply:os.mkdir> ['exploded']",
        "model: !!python/name:os.mkdir",
        "model: " + "[" * 1000,
        f"seed: {'9' * 5000}",
        "model: &a [*a]",
        "a0: &a0 [x, x]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(12)) + "model: *a12",
    ],
    ids=["apply", "new", "whole tag", "name", "brackets", "digits", "a list in itself", "nine to the twelfth"],
)
def test_hostile_yaml_is_one_short_error_and_runs_nothing(tmp_path, content):
    (tmp_path / "params.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read(tmp_path / "params.yaml")
    assert len(str(caught.value)) < 5000


def test_a_file_that_is_not_data_is_not_quoted(tmp_path, monkeypatch):
    """prepare.sft may name any readable file; an error names the line and kind of foreign content and never shows it."""
    inner = tmp_path / "inner"
    inner.mkdir()
    workspace = Workspace(inner, monkeypatch)
    (tmp_path / "passwords").write_text("root:TOPSECRET:0:0\nTOPSECRET=1\n'TOPSECRET'\n<TOPSECRET>\n", encoding="utf-8")
    workspace.params["prepare.sft"] = "../passwords"
    with pytest.raises(InputError, match="4 bad rows") as caught:
        workspace.run("prepare")
    assert "TOPSECRET" not in str(caught.value)


# ---- Messages and stored files --------------------------------------------------------------------------------------


def test_security_error_cannot_act_on_a_terminal(capsys, subtests):
    """A message may quote a file or the error text of a model's template; its own line ends stay."""
    for hostile in ("\x1b[31m", "\x9b31m", "\x1b]0;title\x07", "\r", "\b", "\u202e", "\u2028", "\0"):
        with subtests.test(hostile=hostile):
            with pytest.raises(SystemExit):
                run_stage("sft", Mock(side_effect=InputError(f"one {hostile} two\nthree é")))
            assert capsys.readouterr().err == f"sft: one {repr(hostile)[1:-1]} two\nthree é\n"


HOSTILE = ["<script>alert(1)</script>", "{{ 7 * 7 }} {0.__class__} %s%n", "\x1b[31mred", "$(mkdir exploded)", "../../x"]
SECRETS = {
    "HF_TOKEN": "hf_thetokenofsomebody",
    "HUGGING_FACE_HUB_TOKEN": "hf_anoldertokenofsomebody",
    "OPENAI_API_KEY": "sk-proj-thekeyofsomebody",
    "WANDB_API_KEY": "0123456789thekeyofsomebody",
    "AWS_SECRET_ACCESS_KEY": "aws+the/keyofsomebody",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The five stages on data full of hostile text, with tokens in the environment and no connection allowed."""
    outside, printed = tmp_path_factory.mktemp("outside"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(printed):
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        for name in ("connect_ex", "sendto"):
            patch.setattr(socket.socket, name, refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        (outside / "workspace").mkdir()
        workspace = Workspace(outside / "workspace", patch)
        workspace.write_rows("sft", sft_rows() + [{"prompt": f"{text} why?", "response": f"{text} so."} for text in HOSTILE])
        pairs = [{"prompt": f"{text}?", "chosen": f"{text} yes", "rejected": f"{text} no"} for text in HOSTILE]
        workspace.write_rows("pairs", pair_rows() + pairs)
        hostile = {"topic": HOSTILE[0], "kind": HOSTILE[1], "keywords": [{"any": HOSTILE}], "forbidden": [HOSTILE[3]]}
        prompts = [{"id": f"h{number}", "prompt": f"{text} now?", **hostile} for number, text in enumerate(HOSTILE)]
        workspace.write_rows("eval", eval_rows() + prompts)
        workspace.run_all()
    return SimpleNamespace(outside=outside, workspace=workspace, printed=printed.getvalue())


def test_a_run_writes_nothing_outside_its_folder(whole):
    assert [path.name for path in whole.outside.iterdir()] == ["workspace"]
    assert not list(whole.outside.rglob(EXPLODED))


def test_a_run_keeps_no_token_of_the_environment(whole):
    files = [path for path in whole.outside.rglob("*") if path.is_file() and WEIGHTS not in path.as_posix()]
    assert {"experiments", "metrics", "reports", "plots"} <= {path.relative_to(whole.outside).parts[1] for path in files}
    kept = b"\n".join(path.read_bytes() for path in files) + whole.printed.encode()
    assert [name for name, value in SECRETS.items() if value.encode() in kept] == []


def test_a_run_prints_nothing_that_a_terminal_would_obey(whole):
    assert "device cpu" in whole.printed
    assert all(letter.isprintable() or letter == "\n" for letter in whole.printed)


def test_reports_of_a_run_show_hostile_text_as_text(whole):
    for name in ("data.md", "side_by_side.md", "index.html"):
        text = (whole.workspace.folder / "reports" / name).read_text(encoding="utf-8")
        assert "<script>alert(1)" not in text
        assert re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text) == []


def test_a_run_uploads_and_reports_nothing_by_default(whole):
    from aligner.training.setup import training_arguments

    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    stage = SimpleNamespace(**whole.workspace.params["sft"])
    hardware = SimpleNamespace(**whole.workspace.params["models.mini.sft"])
    where = SimpleNamespace(device="cpu", dtype=None)
    arguments = training_arguments(stage, hardware, SimpleNamespace(gradient_checkpointing=False), 1, where)
    assert arguments["report_to"] == "none" and "push_to_hub" not in arguments
