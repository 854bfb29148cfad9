"""Model folders: a local folder, a pinned revision in the hub's cache, and one clear error for every other case. No network."""

import itertools
import os
import shlex
import socket
import subprocess
import sys
import time

import pytest
from support.workspace import REPOSITORY

from aligner.model.hub import TOKENIZER_FILES, WEIGHT_FILES, model_folder
from aligner.run.errors import InputError

REVISION = "0123456789abcdef0123456789abcdef01234567"
DOWNLOAD = f"hf download somebody/model --revision {REVISION}"


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """An empty hub cache, the hub's offline switch, and a socket that refuses connections."""
    from huggingface_hub import constants

    def refuse(*arguments):
        raise AssertionError(f"a test must not use the network: {arguments[1:]}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket.socket, "connect", refuse)


def problem(path, revision=None):
    with pytest.raises(InputError) as caught:
        model_folder(path, revision, TOKENIZER_FILES)
    return str(caught.value)


def fail_with(monkeypatch, error):
    def download(*arguments, **options):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)


def refusal(kind, status, message):
    """An error of the hub as its client raises it."""
    import httpx2

    return kind(message, response=httpx2.Response(status, request=httpx2.Request("GET", "https://huggingface.co/x")))


def test_hub_folder_is_taken_as_it_stands(tmp_path, subtests):
    (tmp_path / "mine").mkdir()
    for revision in (None, REVISION):
        with subtests.test(revision=revision):
            assert str(model_folder("mine", revision, TOKENIZER_FILES)) == "mine"
            assert model_folder(str(tmp_path / "mine"), revision, TOKENIZER_FILES) == tmp_path / "mine"


def test_hub_is_not_asked_for_a_missing_folder(subtests):
    paths = ["models/mini", "data/x", "./x", "../x/y", "/x/y", "~/x", "a/b/c", "gpt2", "./a b;c"]
    for path, revision in itertools.product(paths, [None, REVISION]):
        expected = f"model folder {path} is missing. If it is part of this repository: git checkout -- {shlex.quote(path)}"
        with subtests.test(path=path, revision=revision):
            assert problem(path, revision) == expected


def test_hub_model_must_be_pinned(subtests):
    for revision in (None, "", "main", REVISION[:-1], REVISION + "0", REVISION.upper(), REVISION + "\n"):
        with subtests.test(revision=revision):
            assert problem("somebody/model", revision) == (
                "somebody/model is a Hugging Face model and needs a pinned commit: set models.<name>.revision in "
                "params.yaml to its 40 hex digits (see https://huggingface.co/somebody/model/commits/main)"
            )


def test_a_model_in_the_cache_is_found_without_the_hub(tmp_path):
    snapshot = tmp_path / "hub/models--somebody--model/snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert model_folder("somebody/model", REVISION, TOKENIZER_FILES).resolve() == snapshot.resolve()
    assert "not in the local cache" in problem("somebody/model", REVISION[::-1])


def test_offline_without_the_model_is_one_error_that_names_the_command():
    expected = f"somebody/model is not in the local cache and the hub cannot be reached. With a network: {DOWNLOAD}"
    assert problem("somebody/model", REVISION) == expected


def test_the_offline_switch_of_the_environment_is_enough(tmp_path):
    """Set as users set it, in a separate process: no traceback, and no request to the network."""
    code = (
        "import socket, sys\n"
        "socket.socket.connect = lambda *arguments: sys.exit('network')\n"
        "from aligner.run.errors import InputError\n"
        "from aligner.model.hub import model_folder\n"
        f"try: model_folder('somebody/model', '{REVISION}', ['config.json'])\n"
        "except InputError as error: print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY / "src")}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip().endswith(DOWNLOAD) and done.stdout.count("\n") == 1


def test_a_network_that_is_down_is_the_same_error(monkeypatch):
    from huggingface_hub import constants

    def nowhere(*arguments, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client waits between its attempts
    assert problem("somebody/model", REVISION).endswith(f"the hub cannot be reached. With a network: {DOWNLOAD}")


def test_a_gated_model_says_how_to_get_access(monkeypatch):
    from huggingface_hub.errors import GatedRepoError

    fail_with(monkeypatch, refusal(GatedRepoError, 403, "403 Client Error"))
    expected = f"somebody/model is gated: accept its terms on huggingface.co, then: hf auth login && {DOWNLOAD}"
    assert problem("somebody/model", REVISION) == expected


def test_a_revision_that_is_not_there_is_told_in_one_line(monkeypatch):
    from huggingface_hub.errors import RevisionNotFoundError

    fail_with(monkeypatch, refusal(RevisionNotFoundError, 404, "404 Client Error. (Request ID: 1)\n\nRevision Not Found\n"))
    found = problem("somebody/model", REVISION)
    assert found.startswith(f"somebody/model at {REVISION} cannot be downloaded (404 Client Error.")
    assert found.endswith(f"Check name, revision, network: {DOWNLOAD}") and "\n" not in found


def test_a_connection_that_breaks_off_is_told_in_one_line(monkeypatch):
    import httpx2

    fail_with(monkeypatch, httpx2.ReadTimeout("The read operation timed out"))
    assert "cannot be downloaded (The read operation timed out)" in problem("somebody/model", REVISION)
    fail_with(monkeypatch, httpx2.ReadError(""))
    assert "cannot be downloaded (ReadError)" in problem("somebody/model", REVISION)


def test_a_name_that_is_none_is_refused_by_the_hub_s_own_rules():
    assert "cannot be downloaded (" in problem("some..body/model", REVISION)


def test_what_is_asked_for_holds_no_pickled_weights(monkeypatch, tmp_path):
    """Only safetensors and text files, since other weights can run code."""
    asked = {}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda path, **options: asked.update(options) or tmp_path)
    model_folder("somebody/model", REVISION, TOKENIZER_FILES + WEIGHT_FILES)
    assert asked == {"revision": REVISION, "allow_patterns": TOKENIZER_FILES + WEIGHT_FILES}
    assert {pattern.rsplit(".", 1)[1] for pattern in asked["allow_patterns"]} == {"json", "jinja", "safetensors"}
