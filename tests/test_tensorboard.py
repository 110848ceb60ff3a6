"""The real TensorBoard on a run directory, in a browser: everything promised is visible."""

import re
import subprocess
import sys

import pytest
from playwright.sync_api import Page, expect

from conftest import summary

SECONDS = 30_000  # milliseconds: how long a page may take on a busy machine


@pytest.fixture
def tensorboard(tmp_path):
    """Start TensorBoard on the outputs directory, on a free port; return its address."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(tmp_path / "outputs")]
    process = subprocess.Popen(
        [*command, "--port", "0", "--host", "127.0.0.1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = []
    for line in process.stderr:
        lines.append(line)
        if address := re.search(r"http://[\d.]+:\d+/", line):
            break
    else:
        pytest.fail("".join(lines))
    yield address[0]
    process.terminate()
    process.communicate()


def test_every_page_shows_what_a_run_wrote(train, request, tmp_path):
    run_dir = train("trainer.max_steps=40", "data.block_size=32", dashboard=True)
    address = request.getfixturevalue("tensorboard")
    page: Page = request.getfixturevalue("page")
    page.set_viewport_size({"width": 1400, "height": 1000})
    page.set_default_timeout(SECONDS)
    expect.set_options(timeout=SECONDS)
    shots = tmp_path / "screenshots"

    def open_page(name: str, query: str = "") -> None:
        page.goto("about:blank")
        page.goto(f"{address}{query}#{name}")

    def shoot(name: str) -> None:
        page.screenshot(path=shots / f"{name}.png")

    best = f"{summary(run_dir)['best_val_loss']:.4f}".rstrip("0")  # as TensorBoard has it
    open_page("timeseries", "?tagFilter=val/loss")
    expect(page.locator("scalar-card", has_text="val/loss")).to_contain_text(best)
    shoot("timeseries")

    open_page("scalars")
    page.locator("tf-tag-filterer input").fill("^(train/loss|val/bpc|lr)$")
    for tag in ("train/loss", "val/bpc", "lr"):
        card = page.locator("tf-scalar-card").filter(has_text=f"tag: {tag}").first
        expect(card.locator("path.line").first).to_have_attribute("d", re.compile("^M.*L.*L"))
    shoot("scalars")

    open_page("custom_scalars")
    charts = page.locator("tf-custom-scalar-multi-line-chart-card")
    both = charts.filter(has_text="training and validation")
    for tag in ("train/loss", "val/loss"):
        expect(both).to_contain_text(f"{tag} (runs/run/tensorboard)")
    expect(both.locator("path.line").first).to_have_attribute("d", re.compile("^M.*L.*L"))
    for tag in ("val/bpc", "speed/chars_per_second", "lr", "grad_norm", "activations/rms/head"):
        expect(charts.filter(has_text=f"{tag} (runs/run")).to_have_count(1)
    shoot("custom_scalars")

    open_page("images")
    card = page.locator("tf-image-loader").filter(has_text="attention/blocks.1")
    expect(card).to_contain_text("step 40")
    picture = card.locator("img")
    expect(picture).to_be_visible()
    # As wide as the card, so that every pixel of a label is one on the screen.
    expect(picture).to_have_js_property("naturalWidth", 350)
    expect(picture).to_have_js_property("clientWidth", 350)
    shoot("images")

    open_page("text")
    words = (run_dir / "samples.txt").read_text().split("--- step 40\n")[1].split("\n")[0]
    expect(page.get_by_text(words.strip()).first).to_be_visible()
    expect(page.get_by_role("cell", name="␣").first).to_be_visible()
    shoot("text")

    open_page("hparams")
    expect(page.get_by_text("best_val_loss").first).to_be_visible()
    expect(page.get_by_text(best).first).to_be_visible()
    shoot("hparams")

    open_page("projector")
    projector = page.frame_locator("iframe").frame_locator("iframe")
    expect(projector.get_by_text("Points: 15")).to_be_visible()
    expect(projector.get_by_text("Dimension: 16")).to_be_visible()
    expect(projector.locator("canvas").first).to_be_visible()
    shoot("projector")
