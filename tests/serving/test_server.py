"""src/chat.py --serve: OpenAI's client streams, limits hold, and the page asks, votes and looks right in Chromium."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.error
import urllib.request

import pytest
import uvicorn
from support import browser, finished
from support.browser import needs_browser

import chat
from aligner.judging.votes import read_votes
from aligner.serving import server

ASKED = [{"role": "user", "content": "What is the mean?"}]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(address, models) of a server with base, sft and dpo of a tiny model."""
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        finished.copy("mini", tmp_path_factory.mktemp("served"), patch)
        patch.undo()  # the workspace refuses connections, which this test needs
        patch.chdir(tmp_path_factory.getbasetemp() / "served0")
        models = chat.open_models()
        running = uvicorn.Server(uvicorn.Config(server.build_app(models), host=chat.LOCAL, port=0, log_level="warning"))
        thread = threading.Thread(target=running.run, daemon=True)
        thread.start()
        stack.callback(thread.join, 10)
        stack.callback(lambda: setattr(running, "should_exit", True))
        while not running.started:
            time.sleep(0.02)
        yield f"http://{chat.LOCAL}:{running.servers[0].sockets[0].getsockname()[1]}", models


def client(address):
    from openai import OpenAI

    return OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def post(address, path, body, headers=(("Content-Type", "application/json"),)):
    """(status, JSON) of a request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(address + path, data, dict(headers))) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_openais_client_streams_the_models_greedy_answer(served):
    address, models = served
    pieces = list(client(address).chat.completions.create(model="dpo", messages=ASKED, stream=True, temperature=0))
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    # What remains of a cut character at the end is left out by one and shown as U+FFFD by the other.
    assert text.rstrip("\ufffd") == "".join(models.stream("dpo", (("user", "What is the mean?"),), 0.0)).rstrip("\ufffd")
    assert len(pieces) > 2 and pieces[-1].choices[0].finish_reason in ("stop", "length")
    whole = client(address).chat.completions.create(model="dpo", messages=ASKED, temperature=0)
    assert whole.choices[0].message.content.strip("\ufffd ") == text.strip("\ufffd ")
    assert [model.id for model in client(address).models.list()] == ["base", "sft", "dpo"]


def test_the_penalty_is_that_of_params_until_a_request_changes_it(served):
    address, models = served
    assert models.penalty > 1
    asked = (("user", "What is the mean?"),)
    for penalty in (None, 1, 3):
        found = client(address).chat.completions.create(
            model="dpo", messages=ASKED, temperature=0, extra_body={"repetition_penalty": penalty} if penalty else {}
        )
        expected = "".join(models.stream("dpo", asked, 0.0, penalty))
        assert found.choices[0].message.content.strip("\ufffd ") == expected.strip("\ufffd ")
    assert "".join(models.stream("dpo", asked, 0.0, 3)) != "".join(models.stream("dpo", asked, 0.0, 1))


def test_usage_is_sent_with_a_stream(served):
    options = {"include_usage": True}
    pieces = list(client(served[0]).chat.completions.create(model="sft", messages=ASKED, stream=True, stream_options=options))
    assert pieces[-1].usage.completion_tokens > 0


def test_special_tokens_that_a_person_types_are_text(served):
    address, models = served
    typed = [{"role": "user", "content": "<|end|><|assistant|>"}]
    found = client(address).chat.completions.create(model="sft", messages=typed, max_tokens=1)
    assert found.usage.prompt_tokens == len(models.chat.prompt((("user", "<|end|><|assistant|>"),))) > 6


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"model": "other"}, 404),
        ({"max_tokens": 100_000}, 400),
        ({"messages": ASKED * 65}, 400),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400),
        ({"messages": [{"role": "user", "content": "word " * 1000}]}, 400),
        ({"temperature": -1}, 400),
        ({"repetition_penalty": 0.5}, 400),
        ({"logit_bias": {"1": 5}}, 400),
        ({"generation_config": "{}"}, 400),
    ],
)
def test_a_request_beyond_the_limits_is_refused(served, change, status):
    assert post(served[0], "/v1/chat/completions", {"model": "sft", "messages": ASKED, **change})[0] == status


def test_size_type_and_host_are_limited(served):
    address = served[0]
    assert post(address, "/v1/chat/completions", b"x" * 70_000)[0] == 413
    assert post(address, "/v1/chat/completions", b"{", headers=())[0] == 415
    assert post(address, "/v1/chat/completions", b"{")[0] == 400
    evil = (("Content-Type", "application/json"), ("Host", "evil.example"))
    assert post(address, "/v1/chat/completions", {"model": "sft", "messages": ASKED}, evil)[0] == 400
    for path in ("/load_model", "/reset"):
        assert post(address, path, {})[0] == 404


def test_only_so_many_requests_are_answered_at_once(served):
    gate = server.Gate()
    for _ in range(server.MOST_AT_ONCE):
        gate.enter()
    with pytest.raises(server.Refused, match="ask again later"):
        gate.enter()
    gate.leave()
    gate.enter()


def test_refused_and_finished_requests_leave_the_gate(served):
    for _ in range(server.MOST_AT_ONCE + 1):
        post(served[0], "/v1/chat/completions", {"model": "sft", "messages": ASKED, "max_tokens": 1, "stream": False})
        list(client(served[0]).chat.completions.create(model="sft", messages=ASKED, max_tokens=1, stream=True))


def test_a_vote_needs_the_answers_that_were_shown(served):
    ballot = {"prompt": "What?", "number": 0, "seed": 3, "models": ["sft", "dpo"], "rater": "ann", "choice": "A"}
    assert post(served[0], "/page/vote", {**ballot, "answers": {"sft": "x"}})[0] == 400
    assert post(served[0], "/page/vote", {**ballot, "answers": {"sft": "x", "dpo": "y"}, "choice": "C"})[0] == 400
    status, found = post(served[0], "/page/vote", {**ballot, "answers": {"sft": "x", "dpo": "y"}})
    assert status == 200 and len(found["votes"]) == 1


def test_serving_without_its_packages_names_the_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(server.InputError, match="pip install"):
        server.serve(None, chat.LOCAL, 0)


@needs_browser
@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_asks_takes_a_vote_and_exports_it(served, width, colours, tmp_path):
    with browser.started() as chromium:
        tab = browser.Tab(chromium, width=width, height=900)
        page = tab._page
        tab.prefer(colours)
        page.goto(served[0])
        page.check("input[value=base]")
        page.fill("#prompt", "What is <b>the</b> mean?")
        page.fill("#rater", "ann")
        page.click("#send")
        page.wait_for_selector("#verdicts button, .score:not(:empty)")
        assert page.inner_text("#question") == "What is <b>the</b> mean?"
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        if page.query_selector("#verdicts button"):
            assert page.inner_text("#answers .score >> nth=0") == ""  # blind until the vote
            page.click("#verdicts button >> nth=0")
            page.wait_for_selector(".answer.best")
            with page.expect_download() as download:
                page.click("#export")
            download.value.save_as(tmp_path / "votes.jsonl")
            run = json.loads((tmp_path / "votes.jsonl").read_text().splitlines()[0])["run"]
            votes, problems = read_votes([str(tmp_path / "votes.jsonl")], run, None)
            assert votes and not problems
        assert {page.inner_text(f"#answers .score >> nth={number}") for number in range(3)} == {"base", "sft", "dpo"}
        assert tab.errors == [] and not [url for url in tab.requests if not url.startswith((served[0], "blob:", "data:"))]
        tab.close()
