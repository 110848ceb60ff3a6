"""The completions server, tested with OpenAI's own client."""

import contextlib
import gc
import http.client
import itertools
import json
import math
import threading
import time
import weakref
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import torch
from omegaconf import OmegaConf
from servers import running, save, untrained

from litchar.checkpoints import Checkpoint
from litchar.generation import Sampling, generate
from litchar.generation.readers import Prepared
from litchar.serving.completions import Completions, build
from litchar.serving.pieces import token_name
from litchar.serving.protocol import RefusedError, refusal
from litchar.text import ByteVocabulary, Vocabulary

LETTERS = Vocabulary("abcdefgh \n")
LIMITS = {
    "max_tokens": 10**6,
    "max_prompt": 100,
    "at_once": 8,
    "waiting": 300,
    "body_bytes": 5000,
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("serving")


@contextlib.contextmanager
def serving(directory, vocabulary, name, data=None, **limits):
    model = untrained(vocabulary)
    checkpoint = Checkpoint.load(save(directory / f"{name}.ckpt", vocabulary, model, **data or {}))
    prepared = Prepared(checkpoint.build_model())
    served = Completions(checkpoint, prepared, name, OmegaConf.create(LIMITS | limits))
    try:
        with running(build(served), served.batcher.close) as url:
            yield url, served
    finally:
        served.batcher.close()


@pytest.fixture(scope="module")
def server(directory):
    with serving(directory, LETTERS, "letters") as (url, served):
        yield url, served


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def complete(client):
    def complete(**settings):
        return client.completions.create(**({"model": "letters", "prompt": "abc"} | settings))

    return complete


def alone(server, prompt: str, n: int, seed: int, **settings) -> str:
    """Return the text that `generate` writes."""
    ids = LETTERS.encode(prompt)[None]
    steps = generate(server[1].model, ids, n, Sampling(**settings), [seed])
    return LETTERS.decode([int(step.ids[0]) for step in steps])


def test_a_completion_is_the_text_that_generate_writes(complete, server):
    for settings in ({}, {"temperature": 0.5, "top_p": 0.9}, {"temperature": 0}):
        answer = complete(max_tokens=50, seed=3, **settings)
        (choice,) = answer.choices
        assert choice.text == alone(server, "abc", 50, 3, **settings)
        assert choice.finish_reason == "length"
        assert (answer.model, answer.object) == ("letters", "text_completion")
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 50)
    ours = {"top_k": 3, "min_p": 0.05, "repetition_penalty": 1.5}
    answer = complete(max_tokens=50, seed=3, extra_body=ours)
    assert answer.choices[0].text == alone(server, "abc", 50, 3, **ours)
    assert len(complete().choices[0].text) == 16  # as OpenAI has it where nothing is said


def test_without_a_seed_each_text_is_another(complete):
    texts = {complete(max_tokens=50).choices[0].text for _ in range(3)}
    assert len(texts) == 3


def test_several_prompts_and_texts_come_in_order(complete, server):
    answer = complete(prompt=["ab", "cd ", ""], n=2, seed=5, max_tokens=20)
    assert [choice.index for choice in answer.choices] == list(range(6))
    expected = [alone(server, p, 20, seed) for p in ("ab", "cd ", "\n") for seed in (5, 6)]
    assert [choice.text for choice in answer.choices] == expected  # "" begins with id 0, "\n"
    assert answer.usage.total_tokens == (2 + 3 + 0) + 6 * 20  # a prompt counts once
    ids = [LETTERS.encode(prompt).tolist() for prompt in ("ab", "cd ")]
    answer = complete(prompt=ids, n=2, seed=5, max_tokens=20)
    assert [choice.text for choice in answer.choices] == expected[:4]
    answer = complete(prompt=ids[1], seed=5, max_tokens=20)
    assert [choice.text for choice in answer.choices] == expected[2:3]


def test_a_stream_is_the_same_text_bit_by_bit(complete, server):
    chunks = list(
        complete(n=2, seed=4, max_tokens=400, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[-1].usage.completion_tokens == 800
    texts, reasons = ["", ""], [None, None]
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        assert reasons[choice.index] is None  # nothing comes behind the last part
        texts[choice.index] += choice.text
        reasons[choice.index] = choice.finish_reason
    assert texts == [alone(server, "abc", 400, seed) for seed in (4, 5)]
    assert reasons == ["length", "length"]
    assert len(chunks) > 10


def test_the_wire_format_is_server_sent_events(server):
    body = {"model": "letters", "prompt": "ab", "max_tokens": 3, "stream": True}
    with httpx.stream("POST", f"{server[0]}/v1/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[0].removeprefix("data: "))["object"] == "text_completion"


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_text_before_it(complete, server, stream):
    whole = alone(server, "abc", 300, 1)
    stop = whole[100:103]
    expected = whole[: whole.index(stop)]
    answer = complete(max_tokens=300, seed=1, stop=[stop, "never"], stream=stream, logprobs=0)
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    assert "".join(choice.text for choice in choices) == expected
    assert choices[-1].finish_reason == "stop"
    tokens = [token for choice in choices for token in choice.logprobs.tokens]
    assert "".join(tokens) == expected


def test_log_probabilities_are_the_models_own(complete, server):
    model = server[1].model.model
    for settings in ({}, {"temperature": 0.3, "top_p": 0.5}):
        (choice,) = complete(max_tokens=8, seed=2, logprobs=3, echo=True, **settings).choices
        assert choice.text == "abc" + alone(server, "abc", 8, 2, **settings)
        logprobs = choice.logprobs
        ids = torch.from_numpy(LETTERS.encode(choice.text).astype(np.int64))
        with torch.inference_mode():
            expected = model(ids[None])[0].log_softmax(-1)
        assert "".join(logprobs.tokens) == choice.text
        assert logprobs.text_offset == list(range(11))
        assert logprobs.token_logprobs[0] is logprobs.top_logprobs[0] is None
        for t in range(1, 11):
            own = expected[t - 1, ids[t]].item()
            assert logprobs.token_logprobs[t] == pytest.approx(own, abs=1e-5)
            best = {LETTERS.decode([i]): expected[t - 1, i].item() for i in range(len(LETTERS))}
            best = dict(sorted(best.items(), key=lambda item: -item[1])[:3])
            assert logprobs.top_logprobs[t] == pytest.approx(best, abs=1e-5)
    (scored,) = complete(prompt="abcd", max_tokens=0, logprobs=0, echo=True).choices
    assert (scored.text, scored.finish_reason) == ("abcd", "length")
    assert scored.logprobs.token_logprobs[0] is None
    assert len(scored.logprobs.token_logprobs) == 4
    (first,) = complete(prompt="", max_tokens=1, logprobs=1, echo=True).choices
    assert len(first.text) == len(first.logprobs.tokens) == 1
    assert complete(prompt="a", max_tokens=0, echo=True).choices[0].logprobs is None


def test_sixty_four_clients_at_once_lose_nothing_and_change_nothing(client, complete, server):
    answers = {}

    def ask(seed: int) -> None:
        length = 20 + seed
        if seed % 2:
            text = complete(seed=seed, max_tokens=length).choices[0].text
        else:
            chunks = complete(seed=seed, max_tokens=length, stream=True)
            text = "".join(chunk.choices[0].text for chunk in chunks)
        answers[seed] = text

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(64):
        assert answers[seed] == alone(server, "abc", 20 + seed, seed)
    assert len(set(answers.values())) == 64


def test_models_and_health(client, server):
    (model,) = client.models.list().data
    assert (model.id, model.owned_by) == ("letters", "litchar")
    assert client.models.retrieve("letters").id == "letters"
    with pytest.raises(openai.NotFoundError, match="'gpt' is not served here; use 'letters'"):
        client.models.retrieve("gpt")
    wait_until(server[0], writing=0)  # a text ends a moment before it is no longer counted
    assert httpx.head(f"{server[0]}/health").status_code == 200  # as load balancers ask
    health = httpx.get(f"{server[0]}/health").json()
    assert health == {"status": "ok", "model": "letters", "writing": 0, "waiting": 0}


@pytest.mark.parametrize(
    ("settings", "param", "message"),
    [
        ({"prompt": "abé"}, "prompt", "never saw 'é' .LATIN SMALL LETTER E WITH ACUTE"),
        ({"prompt": [1, 10]}, "prompt", "token 10 is not one of the 10"),
        ({"prompt": [-1]}, "prompt", "token -1 is not one of the 10"),
        ({"prompt": "a" * 101}, "prompt", "101 tokens, but this server reads at most 100"),
        ({"prompt": ["a", 1]}, "prompt", "valid string"),
        ({"prompt": []}, "prompt", "prompt: the list is empty"),
        ({"n": 400}, "n", "1 to 308 texts"),
        ({"n": 155, "echo": True, "logprobs": 0}, "n", "1 to 308 texts, not 310; with echo"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"temperature": -1}, "temperature", "must be 0 .* or more"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", r"must lie in \(0, 1\]"),
        ({"max_tokens": 10**6 + 1}, "max_tokens", "at most 1000000"),
        ({"max_tokens": 0}, "max_tokens", "nothing to write"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"logprobs": 21}, "logprobs", "less than or equal to 20"),
        ({"stop": ""}, "stop", "at least one character"),
        ({"stop": ["a"] * 17}, "stop", "at most 16 strings of at most 256 characters"),
        ({"stop": "a" * 257}, "stop", "at most 16 strings of at most 256 characters"),
        ({"best_of": 3}, "best_of", "not supported; use n"),
        ({"presence_penalty": 1.0}, "presence_penalty", "use repetition_penalty"),
        ({"logit_bias": {"1": 5}}, "logit_bias", "not supported"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"extra_body": {"top_q": 1}}, "top_q", "Extra inputs are not permitted"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
    ],
)
def test_a_bad_request_is_refused_with_the_reason(complete, settings, param, message):
    with pytest.raises(openai.BadRequestError, match=message) as refusal:
        complete(**settings)
    assert refusal.value.param == param
    assert refusal.value.type == "invalid_request_error"


def test_an_unknown_model_is_not_found(complete):
    with pytest.raises(openai.NotFoundError, match="'gpt' is not served") as refusal:
        complete(model="gpt")
    assert refusal.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "message"),
    [
        ("POST", "/v1/completions", b'{"model": ', 400, "the body is not JSON"),
        ("POST", "/v1/completions", b"\xff\xfe", 400, "the body is not JSON"),
        ("POST", "/v1/completions", b'{"a": "\xff"}', 400, "the body is not JSON"),
        ("POST", "/v1/completions", b"[" * 4000, 400, "the body is not JSON"),
        (
            "POST",
            "/v1/completions",
            b'{"model": "run", "stream": true, "stream_options": {"x": 1}}',
            400,
            "stream_options.x: Extra inputs are not permitted",
        ),
        ("POST", "/v1/completions", b"[1]", 400, "the body"),
        ("POST", "/v1/completions", b"{}", 400, "model: Field required"),
        ("POST", "/v1/completions", b" " * 5001, 413, ""),
        ("GET", "/v1/completions", b"", 405, "Method Not Allowed"),
        ("POST", "/v1/chat/completions", b"{}", 404, "POST /v1/completions"),
    ],
)
def test_every_refusal_has_openais_shape(server, method, path, content, status, message):
    headers = {"content-type": "application/json"}
    answer = httpx.request(method, server[0] + path, content=content, headers=headers)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("kind", ["text/json", "application/jsonp", "text/plain", ""])
def test_a_body_that_is_not_said_to_be_json_is_refused(server, kind):
    url = f"{server[0]}/v1/completions"
    answer = httpx.post(url, content=b'{"model": "run"}', headers={"content-type": kind})
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert message == "send JSON, with Content-Type: application/json"


def test_a_body_without_a_length_is_measured_as_it_comes(server):
    def endless():
        for _ in range(100):
            yield b" " * 1000

    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{server[0]}/v1/completions", content=endless(), headers=headers)
    assert answer.status_code == 413


def test_another_sites_name_for_this_machine_is_not_answered(server):
    assert httpx.get(f"{server[0]}/health", headers={"host": "evil.example"}).status_code == 400


def wait_until(url: str, **counts: int) -> None:
    """Wait until the server reports these counts of texts being written and waiting."""
    deadline = time.monotonic() + 60
    while not counts.items() <= httpx.get(f"{url}/health").json().items():
        assert time.monotonic() < deadline


def test_a_client_that_hangs_up_frees_its_place(complete, server, caplog):
    stream = complete(max_tokens=10**6, n=3, stream=True)
    next(iter(stream))
    wait_until(server[0], writing=3)
    stream.close()
    wait_until(server[0], writing=0)
    with asked(server[0], model="letters", max_tokens=10**6):
        wait_until(server[0], writing=1)
    wait_until(server[0], writing=0)
    gc.collect()
    assert not [record for record in caplog.records if "never retrieved" in record.message]


def test_what_asks_for_no_more_is_served(complete):
    assert complete(max_tokens=5, extra_body={"best_of": 1, "n": None}).choices[0].text


@contextlib.contextmanager
def asked(url: str, **body):
    """A client that has sent a request, and hangs up at the end of the context."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    with contextlib.closing(connection):
        yield connection


def test_a_text_that_has_ended_keeps_no_cache(complete, server, monkeypatch):
    """A full GPU memory does not trigger the collector."""
    url, served = server
    opened, left = served.model.open, []

    def watched(*sizes):
        reader = opened(*sizes)
        left.append(weakref.ref(reader))
        return reader

    monkeypatch.setattr(served.model, "open", watched)
    gc.disable()
    try:
        complete(max_tokens=5)
        wait_until(url, writing=0)
        assert [reader() for reader in left] == [None]
    finally:
        gc.enable()


def test_of_several_texts_of_which_one_fails_none_goes_on(directory, monkeypatch):
    with serving(directory, LETTERS, "failing", at_once=3) as (url, served):
        opened = served.model.open
        calls = itertools.count(1)

        def open_two(*sizes):
            if next(calls) == 3:
                raise torch.OutOfMemoryError
            return opened(*sizes)

        monkeypatch.setattr(served.model, "open", open_two)
        body = {"model": "failing", "prompt": "a", "n": 3, "max_tokens": 10**6}
        assert httpx.post(f"{url}/v1/completions", json=body).status_code == 500
        wait_until(url, writing=0)


def test_what_has_no_room_to_wait_is_refused_and_all_else_is_written(directory):
    endless, short = {"model": "busy", "max_tokens": 10**6}, {"model": "busy", "max_tokens": 9}
    with serving(directory, LETTERS, "busy", at_once=2, waiting=1) as (url, served):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with asked(url, **endless) as last:
            with asked(url, **endless):
                wait_until(url, writing=2)
                with asked(url, **short):
                    wait_until(url, writing=2, waiting=1)
                wait_until(url, writing=2, waiting=0)
                waiting = contextlib.ExitStack()
                third = waiting.enter_context(asked(url, **short))
                wait_until(url, writing=2, waiting=1)
                with pytest.raises(openai.RateLimitError, match="too many texts are waiting"):
                    client.completions.create(model="busy", prompt="a")
            with waiting:  # one has hung up
                text = json.load(third.getresponse())["choices"][0]["text"]
                assert len(text) == 9
            wait_until(url, writing=1, waiting=0)
            served.batcher.close()
            answer = last.getresponse()
            assert answer.status == 503
            assert json.load(answer)["error"]["message"] == "the server is ending"
        with pytest.raises(openai.InternalServerError, match="the server is ending"):
            client.completions.create(model="busy", prompt="a")


def test_bytes_make_up_characters_and_a_clean_prompt_is_read(directory):
    with serving(directory, ByteVocabulary(), "bytes", {"lowercase": True}) as (url, served):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        answer = client.completions.create(
            model="bytes", prompt="É你", max_tokens=30, seed=1, echo=True, logprobs=1
        )
        (choice,) = answer.choices
        assert choice.text.startswith("é你")
        assert answer.usage.prompt_tokens == 5
        assert choice.logprobs.tokens[:3] == ["bytes:\\xc3", "bytes:\\xa9", "bytes:\\xe4"]
        assert choice.logprobs.text_offset[:6] == [0, 0, 1, 1, 1, 2]
        assert len(choice.logprobs.tokens) == 35
        assert not any(math.isnan(p) for p in choice.logprobs.token_logprobs[1:])
        ids = served.vocabulary.encode("é你")[None]
        steps = generate(served.model, ids, 30, seeds=[1])
        assert choice.text == "é你" + served.vocabulary.decode([int(s.ids[0]) for s in steps])
        for ids, offsets in (
            ([0xE2, 0x41], [0, 1]),  # the first is no character, as the second shows
            ([0xE2, 0xE2, 0x41], [0, 1, 2]),
            ([0xF0, 0x9F, 0x41], [0, 0, 1]),
            ([0xE0, 0x80, 0x41], [0, 1, 2]),
        ):
            answer = client.completions.create(
                model="bytes", prompt=ids, max_tokens=0, echo=True, logprobs=0
            )
            assert answer.choices[0].logprobs.text_offset == offsets


@pytest.mark.parametrize(
    "vocabulary",
    [
        Vocabulary("ab\n", "file"),
        Vocabulary("ab", "line"),
        ByteVocabulary(),
        ByteVocabulary("line"),
        ByteVocabulary("file"),
    ],
    ids=repr,
)
def test_every_token_has_a_name_of_its_own(vocabulary):
    names = [token_name(vocabulary, token) for token in range(len(vocabulary))]
    assert len(set(names)) == len(vocabulary)
    if vocabulary.unit == "byte":
        assert [names[token] for token in vocabulary.encode("aé")] == [
            "a",
            "bytes:\\xc3",
            "bytes:\\xa9",
        ]


def test_a_prompts_line_ends_are_those_that_training_read(server):
    url, _ = server
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    answer = client.completions.create(model="letters", prompt="a\r\nb\rc", max_tokens=0, echo=True)
    assert answer.choices[0].text == "a\nb\nc"


def test_what_asks_for_nothing_is_served(server):
    url, _ = server
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    options = {"include_usage": None, "include_obfuscation": False}
    stream = client.completions.create(
        model="letters", prompt=None, max_tokens=3, seed=1, stream=True, stream_options=options
    )
    whole = client.completions.create(model="letters", prompt="", max_tokens=3, seed=1)
    assert "".join(part.choices[0].text for part in stream) == whole.choices[0].text


def test_json_without_its_type_is_told_what_is_missing(server):
    url, _ = server
    answer = httpx.post(f"{url}/v1/completions", content='{"model": "letters", "prompt": "a"}')
    assert answer.status_code == 400
    assert "Content-Type: application/json" in answer.json()["error"]["message"]


def test_half_of_a_character_is_refused(directory):
    with serving(directory, ByteVocabulary(), "halves") as (url, _):
        body = r'{"model": "halves", "prompt": "\ud800"}'
        json_of = {"content-type": "application/json"}
        answer = httpx.post(f"{url}/v1/completions", content=body, headers=json_of)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "prompt", answer.text
    assert "UTF-8 cannot encode it" in answer.json()["error"]["message"]


def test_a_model_that_knows_half_of_a_character_answers_with_it(directory):
    with serving(directory, Vocabulary(["\udce9"]), "half") as (url, _):
        body = {"model": "half", "prompt": "", "max_tokens": 3}
        answer = httpx.post(f"{url}/v1/completions", json=body)
        streamed = httpx.post(f"{url}/v1/completions", json=body | {"stream": True})
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["text"] == "\udce9" * 3
    assert streamed.text.count(r"\udce9") == 3


def test_a_document_ends_with_a_stop(directory):
    lines = Vocabulary("ab", document="line")
    with serving(directory, lines, "lines") as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        answer = client.completions.create(
            model="lines", prompt="ab", max_tokens=10**4, seed=1, echo=True, logprobs=0
        )
        (choice,) = answer.choices
        assert choice.finish_reason == "stop"
        assert set(choice.text) == {"a", "b"}
        assert choice.logprobs.token_logprobs[0] is not None  # the boundary stands before it
        assert "".join(choice.logprobs.tokens) == choice.text


def test_a_prompt_that_is_too_long_is_refused_before_it_is_cleaned(server, monkeypatch):
    _, served = server
    monkeypatch.setattr(served, "cleaned", lambda text: "a")  # marks take time with their square
    with pytest.raises(RefusedError, match="101 tokens, but this server reads at most 100"):
        served.encode("a" * 101)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (404, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_an_error_is_of_the_kind_that_its_status_says(status, kind):
    answer = refusal("why", status)
    assert answer.status_code == status
    error = {"message": "why", "type": kind, "param": None, "code": None}
    assert json.loads(answer.body) == {"error": error}
