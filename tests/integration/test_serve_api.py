"""The API as its clients see it: the real `openai` client, a real server, a real model."""

import json
import logging
import re
import secrets
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from codeparrot.api_keys import ApiKeys
from codeparrot.completion import Request
from codeparrot.completion_plan import Served, ServeSettings
from codeparrot.engine import Engine
from tests.integration.conftest import wait_until
from tests.served import CONTEXT, NAME, Gate, Server, serving, tiny

PROMPT = "def add(self, name):\n    "


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return tiny(tmp_path_factory.getbasetemp() / NAME)


@pytest.fixture(scope="module")
def server(served: Served) -> Iterator[Server]:
    with serving(served) as running:
        yield running


@pytest.fixture
def gate(served: Served) -> Iterator[Gate]:
    gate = Gate(served)
    yield gate
    gate.remove()


def text_of(server: Server, **options: Any) -> str:
    options = {"prompt": PROMPT, "max_tokens": 20, "seed": 1, **options}
    return str(server.client().completions.create(model=NAME, **options).choices[0].text)


def test_a_completion_is_that_of_the_engine(served: Served, server: Server) -> None:
    engine = Engine(served.model, served.vocabulary)
    (expected,) = engine.complete([Request(served.vocabulary.encode(PROMPT), 20, temperature=0)])
    answer = server.client().completions.create(model=NAME, prompt=PROMPT, max_tokens=20, temperature=0)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == (expected.text, "length")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(served.vocabulary.encode(PROMPT))
    assert answer.usage.completion_tokens == 20
    assert answer.model == NAME


def test_a_stream_is_the_completion_in_parts(server: Server) -> None:
    whole = text_of(server)
    parts = list(
        server.client().completions.create(
            model=NAME, prompt=PROMPT, max_tokens=20, seed=1, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(choice.text for part in parts for choice in part.choices) == whole
    assert [choice.finish_reason for part in parts for choice in part.choices if choice.finish_reason] == ["length"]
    assert [part.usage.completion_tokens for part in parts if part.usage] == [20]
    assert len({part.id for part in parts}) == 1


def test_a_seed_gives_the_same_whatever_else_runs(server: Server) -> None:
    alone = text_of(server, seed=5)
    with ThreadPoolExecutor(6) as pool:
        seeds = [5, 6, 7, 5, 8, 5]
        crowded = list(pool.map(lambda seed: text_of(server, seed=seed), seeds))
    assert {text for seed, text in zip(seeds, crowded, strict=True) if seed == 5} == {alone}
    assert len(set(crowded)) == 4
    assert text_of(server, seed=None) != text_of(server, seed=None)


def test_choices_of_one_request_differ_and_the_first_is_that_of_a_request_for_one(server: Server) -> None:
    prompts = [PROMPT, "import "]
    answer = server.client().completions.create(model=NAME, prompt=prompts, n=3, max_tokens=20, seed=1)
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert len({choice.text for choice in answer.choices}) == 6
    assert answer.choices[0].text == text_of(server)


def test_scores_of_a_prompt_are_those_of_the_model(served: Served, server: Server) -> None:
    import torch

    answer = server.client().completions.create(
        model=NAME, prompt=PROMPT, max_tokens=0, temperature=0, echo=True, logprobs=2
    )
    (choice,) = answer.choices
    ids = served.vocabulary.encode(PROMPT)
    with torch.inference_mode():
        logits = torch.log_softmax(served.model(torch.tensor([ids])).logits[0].float(), 1)
    expected = [float(logits[place, token]) for place, token in enumerate(ids[1:])]
    assert choice.text == PROMPT
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs == pytest.approx(expected, abs=1e-4)
    assert choice.logprobs.tokens is not None
    assert "".join(choice.logprobs.tokens) == PROMPT
    assert choice.logprobs.top_logprobs is not None
    assert all(2 <= len(top) <= 3 for top in choice.logprobs.top_logprobs)


def test_token_ids_are_a_prompt_too(served: Served, server: Server) -> None:
    ids = served.vocabulary.encode(PROMPT)
    assert text_of(server, prompt=ids) == text_of(server)
    assert text_of(server, prompt=[ids]) == text_of(server)
    assert text_of(server, prompt=None) == text_of(server, prompt="")


@pytest.mark.parametrize("seed", range(6))
def test_every_part_of_a_stream_has_the_text_of_its_tokens(server: Server, seed: int) -> None:
    """Whatever the tokens are: half characters, beginnings of stop sequences, the end of a document."""
    options: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 60, "seed": seed, "temperature": 1.5, "logprobs": 1}
    text = text_of(server, **options)
    stop = [text[len(text) // 2 :][:3], "\n\n\n"]
    options["echo"] = seed % 2 == 1
    given, tokens = "", []
    for part in server.client().completions.create(model=NAME, stream=True, stop=stop, **options):
        for choice in part.choices:
            assert choice.logprobs is not None
            assert choice.logprobs.text_offset is not None
            assert choice.logprobs.tokens is not None
            if choice.logprobs.text_offset:
                assert choice.logprobs.text_offset[0] == len(given)
            given += choice.text
            tokens += list(zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True))
    assert given == (PROMPT if options["echo"] else "") + text[: text.index(stop[0])]
    ends = [offset for _, offset in tokens[1:]] + [len(given)]
    for (token, start), end in zip(tokens, ends, strict=True):
        shown = given[start:end]
        assert shown == token or "\ufffd" in shown or token.startswith("bytes:") or end == len(given)


def test_a_stop_sequence_is_never_shown(server: Server) -> None:
    text = text_of(server, temperature=0)
    stop = text[4:7]
    answer = server.client().completions.create(
        model=NAME, prompt=PROMPT, max_tokens=20, temperature=0, stop=[stop, "never there"]
    )
    assert answer.choices[0].text == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 17}, "n", "at most 16"),
        ({"logprobs": 6}, "logprobs", "less than or equal to 5"),
        ({"stop": list("abcde")}, "stop", "at most 4"),
        ({"stop": ""}, "stop", "1 to 200 characters"),
        ({"max_tokens": CONTEXT}, "max_tokens", f"at most {CONTEXT - 1}"),
        ({"prompt": "x + " * CONTEXT}, "prompt", "room for"),
        ({"prompt": [100_000]}, "prompt", "no token of this model"),
        ({"prompt": []}, "prompt", "at least 1"),
        ({"suffix": "return x"}, "suffix", "not trained to fill in the middle"),
        ({"presence_penalty": 1}, "presence_penalty", "not supported"),
        ({"logit_bias": {"5": -100}}, "logit_bias", "not supported"),
        ({"best_of": 4}, "best_of", "not supported"),
        ({"seed": 2**80}, "seed", "less than"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    server: Server, options: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().completions.create(model=NAME, **{"prompt": PROMPT, **options})
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["param"] == param
    assert caught.value.body["type"] == "invalid_request_error"
    assert words in caught.value.body["message"]


def test_the_model_is_known_by_its_name(server: Server) -> None:
    client = server.client()
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "codeparrot"
    with pytest.raises(openai.NotFoundError, match="'gpt' is not served here; 'tiny' is"):
        client.models.retrieve("gpt")
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt", prompt=PROMPT)


def asked(server: Server, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Status and body of a request that no client of the API would make."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(server.url + path, body, names)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/v1/completions", b"{}", {"Content_Type": "text/plain"}, 415),
        ("/v1/completions", b"x" * 1_000_001, {"Content_Type": "application/json"}, 413),
        ("/v1/completions", b"{", {"Content_Type": "application/json"}, 400),
        ("/v1/completions", b"[" * 100_000, {"Content_Type": "application/json"}, 400),
        ("/v1/completions", b"[]", {"Content_Type": "application/json"}, 400),
        ("/v1/completions", b'{"model": "tiny", "prompt": "\\ud800"}', {"Content_Type": "application/json"}, 400),
        ("/v1/completions", None, {}, 405),
        ("/v1/nothing", None, {}, 404),
        ("/docs", None, {}, 404),
        ("/v1/models", None, {"Host": "evil.example:8000"}, 421),
    ],
)
def test_every_error_has_the_shape_of_the_api(
    server: Server, path: str, body: bytes | None, headers: dict[str, str], status: int
) -> None:
    found, answer = asked(server, path, body, **headers)
    assert found == status
    assert set(json.loads(answer)["error"]) == {"message", "type", "param", "code"}


def test_keys_let_in_who_has_one_and_are_read_again(served: Served, tmp_path: Path) -> None:
    file, first, second = tmp_path / "keys", secrets.token_hex(16), secrets.token_hex(16)
    file.write_text(f"# of the team\n{first}\n")
    with serving(served, keys=ApiKeys(file)) as server:
        assert server.client(first).models.list().data
        for wrong in (second, first[:-1], f"{first}x"):
            with pytest.raises(openai.AuthenticationError, match="wrong API key"):
                server.client(wrong).completions.create(model=NAME, prompt=PROMPT)
        assert asked(server, "/v1/models")[0] == 401
        assert [asked(server, path)[0] for path in ("/", "/healthz", "/metrics")] == [200] * 3
        file.write_text(f"{first}\n{second}\n")
        assert server.client(second).models.list().data
        file.unlink()
        with pytest.raises(openai.AuthenticationError):
            server.client(first).models.list()


def test_what_finds_no_room_is_told_when_to_come_again(served: Served, gate: Gate) -> None:
    settings = ServeSettings(max_batch_size=1, max_queued=1, max_choices=1)
    with serving(served, settings) as server, ThreadPoolExecutor(2) as pool:
        expected = [text_of(server, seed=seed) for seed in (1, 2)]
        gate.allow(0)
        accepted = [pool.submit(text_of, server, seed=seed) for seed in (1, 2)]
        wait_until(lambda: server.service.num_open == 2, "two requests")
        with pytest.raises(openai.RateLimitError) as caught:
            text_of(server)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        gate.allow(None)
        assert [future.result(60) for future in accepted] == expected


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(served: Served, gate: Gate, stream: bool) -> None:
    with serving(served) as server:
        gate.allow(0)
        client = server.client().with_options(timeout=0.5 if not stream else 60)
        if stream:
            answer = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=100, stream=True)
            gate.wait()
            answer.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                client.completions.create(model=NAME, prompt=PROMPT, max_tokens=100)
        wait_until(lambda: server.service.num_open == 0, "an empty server")
        gate.allow(None)
        text_of(server, max_tokens=1)
        metrics = asked(server, "/metrics")[1].decode()
        assert "codeparrot_requests_left_total 1.0" in metrics
        assert "codeparrot_completions_running 0.0" in metrics
        assert counted(metrics, "codeparrot_completion_tokens_total") <= 3


def counted(metrics: str, name: str) -> float:
    (found,) = re.findall(rf"^{re.escape(name)} (\S+)$", metrics, re.MULTILINE)
    return float(found)


def test_what_was_accepted_is_answered_when_the_server_ends(served: Served, gate: Gate) -> None:
    with serving(served) as server, ThreadPoolExecutor(1) as pool:
        expected = text_of(server)
        gate.allow(0)
        accepted = pool.submit(text_of, server)
        wait_until(lambda: server.service.num_open == 1, "a request")
        server.service.end()
        assert asked(server, "/healthz")[0] == 503
        with pytest.raises(openai.InternalServerError, match="shutting down"):
            text_of(server)
        gate.allow(None)
        assert accepted.result(60) == expected


def test_a_model_that_fails_costs_the_requests_that_ran_and_not_the_server(served: Served, gate: Gate) -> None:
    with serving(served) as server:
        expected = text_of(server)
        gate.fail(times=1)
        with pytest.raises(openai.InternalServerError, match="the model failed"):
            text_of(server)
        assert text_of(server) == expected
        gate.fail(times=1)
        with pytest.raises(openai.APIError, match="the model failed"):
            list(server.client().completions.create(model=NAME, prompt=PROMPT, stream=True))
        gate.fail(times=3)
        for _ in range(3):
            with pytest.raises(openai.InternalServerError):
                text_of(server)
        assert asked(server, "/healthz")[0] == 503
        metrics = asked(server, "/metrics")[1].decode()
        assert counted(metrics, "codeparrot_requests_left_total") == 0, "it was the model, not the client"
        assert counted(metrics, "codeparrot_time_to_first_token_seconds_count") == 2, "of five failures there was none"


@pytest.mark.parametrize("log_text", [False, True])
def test_requests_are_logged_without_their_text(
    served: Served, log_text: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(served, ServeSettings(log_text=log_text)) as server, caplog.at_level(logging.INFO):
        text_of(server, prompt="secret_name = 1\n")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "codeparrot.serving"]
    assert re.match(r"cmpl-\w+ client -: \d+ \+ 20 tokens, 1 choices \(length\), first token [\d.]+ s, [\d.]+ s", line)
    assert ("secret_name" in line) is log_text


def test_prompts_are_cut_where_the_server_says_so(served: Served) -> None:
    with serving(served, ServeSettings(cut_prompts=True)) as server:
        ids = served.vocabulary.encode("x + " * CONTEXT)
        long = server.client().completions.create(model=NAME, prompt="x + " * CONTEXT, max_tokens=20, seed=1)
        assert long.usage is not None
        assert long.usage.prompt_tokens == CONTEXT - 20
        assert long.choices[0].text == text_of(server, prompt=ids[-(CONTEXT - 20) :])


def test_figures_are_those_of_what_was_asked(served: Served) -> None:
    with serving(served) as server:
        text_of(server, n=2)
        with pytest.raises(openai.BadRequestError):
            text_of(server, n=0)
        metrics = asked(server, "/metrics")[1].decode()
    assert counted(metrics, 'codeparrot_requests_total{status="200"}') == 1
    assert counted(metrics, 'codeparrot_requests_total{status="400"}') == 1
    assert counted(metrics, "codeparrot_completion_tokens_total") == 40
    assert counted(metrics, "codeparrot_time_to_first_token_seconds_count") == 1
    assert counted(metrics, "codeparrot_request_seconds_count") == 1
