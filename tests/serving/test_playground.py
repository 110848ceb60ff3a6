"""The playground, in a real browser."""

import asyncio
import os
import re
import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from playwright.sync_api import Page, expect
from servers import running, save, untrained

from conftest import composed
from litchar.generation import Sampling, generate
from litchar.serving import playground
from litchar.serving.batching import Batcher
from litchar.serving.playground import Playground, Run, build, sign
from litchar.text import Vocabulary

expect.set_options(timeout=30_000)  # milliseconds: how long a page may take on a busy machine
LETTERS = Vocabulary("abcdefgh \n")
HTML = "<script>window.hacked=1</script><img src=x onerror=parent.hacked='2'>&lt;b>\n"


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("serving")


def learned(text: str, vocabulary: Vocabulary) -> torch.nn.Module:
    """Return a model that has memorised `text`."""
    model = untrained(vocabulary).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.from_numpy(vocabulary.encode(3 * text).astype(np.int64))
    windows = ids.unfold(0, 17, 1)
    while True:
        logits = model(windows[:, :-1])[:, 7:]  # where there is context enough to know
        loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 8:].flatten())
        if loss < 0.05:
            return model.eval()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_a_character_that_would_not_be_seen_has_a_sign():
    shown = {"a": "a", " ": "␣", "\n": "↵", "\\": "\\", "\u200c": "\\u200c", "\xa0": "\\xa0"}
    assert {character: sign(character) for character in shown} == shown


@pytest.fixture(scope="module")
def url(directory):
    outputs = directory / "outputs"
    save(outputs / "sweeps/s/0/checkpoints/best.ckpt", LETTERS, untrained(LETTERS, seed=1))
    shouting = Vocabulary(HTML)
    save(outputs / "runs/html/checkpoints/best.ckpt", shouting, learned(HTML, shouting))
    latest = save(outputs / "runs/letters/checkpoints/best.ckpt", LETTERS, untrained(LETTERS))
    (outputs / "runs/letters/summary.json").write_text('{"best_val_loss": 1.5}')
    limits = ("limit=100000", "at_once=2", "waiting=1")
    config = composed("playground", f"outputs_dir={outputs}", *limits, "device=cpu")
    playground = Playground(config, latest)
    with running(build(playground), playground.batcher.close) as url:
        yield url
    playground.batcher.close()


@pytest.fixture
def requests(page: Page) -> list[str]:
    seen: list[str] = []
    page.on("request", lambda request: seen.append(request.url))
    return seen


@pytest.fixture
def text(page: Page, url, requests):
    """The frame with the text; the page may send requests to the server only."""
    page.goto(url)
    yield page.frame_locator("iframe[name=text]")
    assert requests
    assert all(seen.startswith((url, "data:")) for seen in requests)


def write(page: Page, **settings: str) -> None:
    for label, value in settings.items():
        page.get_by_label(label.replace("_", " "), exact=True).fill(value)
    page.get_by_role("button", name="Write").click()


def written(page: Page, text, **settings: str) -> str:
    """Write a text, wait until it is complete, and return it."""
    page.evaluate("frames['text'].document.body.dataset.before = ''")
    write(page, **settings)
    page.wait_for_function(
        "() => frames['text'].document.body && !('before' in frames['text'].document.body.dataset)"
    )
    expect(text.get_by_role("status")).to_be_visible()
    return text.locator("pre").evaluate("pre => pre.textContent")


def alone(directory: Path, prompt: str, n: int, seed: int, **settings) -> str:
    ids = LETTERS.encode(prompt)[None]
    steps = generate(untrained(LETTERS), ids, n, Sampling(**settings), [seed])
    return LETTERS.decode([int(step.ids[0]) for step in steps])


def test_a_prompt_and_settings_give_the_text_that_generate_writes(page, text, directory):
    shown = written(page, text, Prompt="abc\nd", Length="40", Seed="3")
    assert shown == "abc\nd" + alone(directory, "abc\nd", 40, 3)
    assert text.get_by_role("status").inner_text().startswith("40 characters, ")
    settings = {"temperature": 0.5, "top_k": 3, "repetition_penalty": 1.5}
    labels = {"Temperature": "0.5", "Top-k": "3", "Repetition_penalty": "1.5"}
    assert written(page, text, **labels) == "abc\nd" + alone(directory, "abc\nd", 40, 3, **settings)


def test_temperature_0_gives_the_same_text_and_1_another_each_time(page, text):
    greedy = {written(page, text, Prompt="ab", Temperature="0", Length="60") for _ in range(2)}
    assert len(greedy) == 1
    drawn = {written(page, text, Temperature="1") for _ in range(2)}
    assert len(drawn) == 2
    assert not drawn & greedy


def test_text_grows_as_it_is_sampled_until_it_is_stopped(page, text):
    write(page, Prompt="ab", Length="100000")
    characters = text.locator("pre span")
    expect(characters.first).to_be_visible()
    before = characters.count()
    page.wait_for_function(
        f"() => frames['text'].document.querySelectorAll('pre span').length > {before}"
    )
    expect(text.get_by_role("status")).to_have_count(0)
    page.get_by_role("button", name="Stop").click()
    expect(text.get_by_role("status")).to_contain_text("Stopped.")
    assert before < characters.count() < 100_000


def test_a_character_shows_its_probability_and_what_else_might_stand_there(page, text):
    written(page, text, Prompt="abc", Length="30", Seed="3")
    with torch.inference_mode():
        logits = untrained(LETTERS)(torch.from_numpy(LETTERS.encode("abc").astype(np.int64))[None])
    probs = logits[0, -1].softmax(-1)
    likeliest = probs.argsort(descending=True)
    first = text.locator("pre span").first
    shown = "element => getComputedStyle(element, '::after').content"
    assert first.evaluate(shown) == "none"
    signs = {" ": "␣", "\n": "↵"}
    for show in (first.hover, first.click):
        page.mouse.move(0, 0)
        show()
        said = first.evaluate(shown)
        names = [LETTERS.decode([int(i)]) for i in likeliest[:5]]
        for name, i in zip(names, likeliest[:5], strict=True):
            assert re.search(f"{signs.get(name, name)}  +{probs[i]:.1%} ", said)
        chosen = first.evaluate("element => element.textContent")
        p = probs[int(LETTERS.encode(chosen)[0])].item()
        assert f"was {p:.1%} likely" in said
    page.mouse.move(0, 0)
    assert first.evaluate(shown) != "none"  # what was clicked stays
    bits = -np.log2(p)
    level = sum(bits >= least for least in (0, 1, 2, 4, 8)) - 1
    assert f"s{level}" in first.get_attribute("class")


def test_colours_can_be_turned_off(page, text):
    written(page, text, Prompt="abc", Length="60", Seed="3")
    coloured = text.locator("pre .s3").first
    expect(coloured).not_to_have_css("background-color", "rgba(0, 0, 0, 0)")
    text.get_by_label("Colours").uncheck()
    expect(coloured).to_have_css("background-color", "rgba(0, 0, 0, 0)")


def test_an_unknown_character_is_named(page, text):
    write(page, Prompt="abé<b>")
    said = "'é' (LATIN SMALL LETTER E WITH ACUTE)"
    expect(text.get_by_role("alert")).to_contain_text("The model never saw '<'")
    expect(text.get_by_role("alert")).to_contain_text(said)


def test_a_stop_string_ends_the_text(page, text, directory):
    whole = alone(directory, "ab", 200, 3)
    end = whole.index("\n", 1)
    shown = written(page, text, Prompt="ab", Length="200", Seed="3", Stop_before=r"\n")
    assert shown == "ab" + whole[: whole.index("\n")]
    assert end


def test_html_in_a_corpus_and_a_prompt_is_shown_as_text(page, text):
    page.get_by_label("Run").select_option("runs/html")
    length = str(2 * len(HTML))
    shown = written(page, text, Prompt="<script>window.", Length=length, Temperature="0")
    assert shown.startswith(HTML)
    frame = next(frame for frame in page.frames if frame.name == "text")
    assert frame.locator("script, img").count() == 0
    assert page.evaluate("[0, 1].map(i => frames[i].hacked)") == [None, None]
    assert page.evaluate("window.hacked") is None


def test_any_run_and_sweep_can_be_chosen(page, text):
    options = page.get_by_label("Run").locator("option")
    assert options.all_inner_texts() == [
        "loss 1.500: runs/letters",
        "runs/html",
        "sweeps/s/0",
    ]
    assert page.get_by_label("Run").input_value() == "runs/letters"
    first = written(page, text, Prompt="ab", Length="60", Seed="1")
    page.get_by_label("Run").select_option("sweeps/s/0")
    assert written(page, text) != first


def test_a_narrow_window_holds_the_page(page, text):
    page.set_viewport_size({"width": 360, "height": 740})
    written(page, text, Prompt="abc", Length="300")
    for document in ("document", "frames['text'].document"):
        width = page.evaluate(f"{document}.documentElement.scrollWidth")
        assert width <= 360
    button, frame = page.get_by_role("button", name="Write"), page.locator("iframe[name=text]")
    assert frame.bounding_box()["y"] < button.bounding_box()["y"] + 100  # seen without scrolling


def test_the_page_follows_the_browsers_colours(page, text):
    shades = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for document in ("document", "frames['text'].document"):
            colour = page.evaluate(f"getComputedStyle({document}.body).backgroundColor")
            shades.append(sum(map(int, re.findall(r"\d+", colour)[:3])))
    assert min(shades[:2]) > 600
    assert max(shades[2:]) < 150


# Without a browser


FORM = {
    "run": "runs/letters",
    "prompt": "ab",
    "temperature": "1",
    "repetition_penalty": "1",
    "max_new_tokens": "10",
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": "-1"}, "temperature=-1: must be 0"),
        ({"temperature": "hot"}, "temperature=hot: must be a number"),
        ({"max_new_tokens": "100001"}, "Length: at most 100000"),
        ({"max_new_tokens": "0"}, "max_new_tokens=0"),
        ({"max_new_tokens": ""}, "max_new_tokens=None"),
        ({"seed": "-1"}, "seed=-1"),
        ({"prompt": "a" * 20000}, "Prompt: at most 16384"),
        ({"run": "/etc/passwd"}, "/etc/passwd: this run no longer exists"),
        ({"run": "<b>"}, "&lt;b&gt;: this run no longer exists"),
    ],
)
def test_an_unfit_form_is_refused_with_the_reason(url, changes, message):
    answer = httpx.post(f"{url}/write", data=FORM | changes)
    assert answer.status_code == 400
    assert f'role="alert">{message}' in answer.text


def test_a_browser_takes_no_longer_prompt_than_the_server(url):
    assert 'name="prompt" rows="4" maxlength="16384"' in httpx.get(url).text


@pytest.mark.linux
def test_a_run_whose_name_is_no_text_is_left_out(url, directory):
    run = directory / "outputs/runs" / os.fsdecode(b"bad\xff")
    shutil.copytree(directory / "outputs/runs/letters", run)
    answer = httpx.get(url)
    shutil.rmtree(run)
    assert answer.status_code == 200
    assert "runs/letters" in answer.text
    assert "bad" not in answer.text


def test_a_prompt_is_shown_as_the_model_reads_it(url, directory):
    rare = Vocabulary("ab\ufffd", replaces=True)
    place = directory / "outputs/runs/rare/checkpoints/best.ckpt"
    save(place, rare, untrained(rare))
    answer = httpx.post(f"{url}/write", data=FORM | {"run": "runs/rare", "prompt": "☃ab"})
    shutil.rmtree(place.parents[1])
    assert "\ufffdab" in answer.text
    assert "☃" not in answer.text


def test_half_of_a_character_is_shown_as_its_number(url, directory):
    half = Vocabulary(["\udce9"])
    place = directory / "outputs/runs/half/checkpoints/best.ckpt"
    save(place, half, untrained(half))
    answer = httpx.post(f"{url}/write", data=FORM | {"run": "runs/half", "prompt": ""})
    shutil.rmtree(place.parents[1])
    assert answer.text.count(r">\xdce9</span>") == 10
    assert "10 characters, 0.00 bits each" in answer.text


def test_the_disk_is_read_beside_the_event_loop(url, monkeypatch):
    """A slow one would hold up all texts."""
    on_loop = []

    def watched(read):
        def reading(self):
            on_loop.append(asyncio._get_running_loop() is not None)
            return read(self)

        return reading

    monkeypatch.setattr(Playground, "runs", watched(Playground.runs))
    monkeypatch.setattr(Run, "label", property(watched(Run.label.fget)))
    assert "loss 1.500: runs/letters" in httpx.get(url).text
    assert "10 characters, " in httpx.post(f"{url}/write", data=FORM).text
    assert len(on_loop) == 5
    assert not any(on_loop)


def test_a_checkpoint_in_no_directory_has_its_path_for_a_name():
    assert Run("/model.ckpt", Path("/model.ckpt")).label == "/model.ckpt"


@pytest.mark.parametrize("summary", ['{"best_val_loss": 1%s}' % ("0" * 400), "[" * 100_000])
def test_a_summary_that_says_anything_leaves_the_name(tmp_path, summary):
    (tmp_path / "summary.json").write_text(summary)
    assert Run("runs/a", tmp_path / "checkpoints/best.ckpt").label == "runs/a"


def test_a_form_of_another_sites_page_is_refused(url):
    for site in ("cross-site", "same-site"):
        headers = {"sec-fetch-site": site}
        assert httpx.post(f"{url}/write", data=FORM, headers=headers).status_code == 403
    assert httpx.post(f"{url}/write", data=FORM).status_code == 200
    assert httpx.get(url, headers={"host": "evil.example"}).status_code == 400


def test_every_answer_forbids_scripts(url):
    for answer in (httpx.get(url), httpx.get(f"{url}/text"), httpx.post(f"{url}/write", data=FORM)):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "script-src" not in answer.headers["content-security-policy"]
        assert "<script" not in answer.text


def test_more_texts_than_there_is_room_for_are_refused_until_one_ends(url):
    endless = FORM | {"max_new_tokens": "100000"}
    with httpx.Client() as client:
        held = []
        for page in "abc":  # two are written, one waits
            request = client.build_request("POST", f"{url}/write", data=endless | {"page": page})
            held.append(client.send(request, stream=True))
        refusal = httpx.post(f"{url}/write", data=FORM)
        assert "too many texts are waiting; try again" in refusal.text
        assert refusal.status_code == 429
        for page in "abc":
            assert httpx.post(f"{url}/stop", data={"page": page}).status_code == 204
        assert all("Stopped." in answer.read().decode() for answer in held)


def test_a_damaged_or_deleted_run_is_named(url, directory):
    run = directory / "outputs/runs/broken"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints/best.ckpt").write_bytes(b"nothing")
    try:
        answer = httpx.post(f"{url}/write", data=FORM | {"run": "runs/broken"})
        assert "best.ckpt: not a complete checkpoint" in answer.text
    finally:
        shutil.rmtree(run)
    answer = httpx.post(f"{url}/write", data=FORM | {"run": "runs/broken"})
    assert "runs/broken: this run no longer exists" in answer.text


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")]
)
def test_a_run_for_which_there_is_no_memory_is_named(url, monkeypatch, error):
    def refuse(*_):
        raise error

    monkeypatch.setattr(playground, "load", refuse)
    answer = httpx.post(f"{url}/write", data=FORM)
    assert answer.status_code == 400
    assert 'role="alert">runs/letters: out of memory (' in answer.text


def test_a_playground_that_ends_says_so(url, monkeypatch):
    closed = Batcher(1, 1)
    closed.close()
    monkeypatch.setattr(Batcher, "write", closed.write)
    answer = httpx.post(f"{url}/write", data=FORM)
    assert 'role="alert">the server is ending</p>' in answer.text
