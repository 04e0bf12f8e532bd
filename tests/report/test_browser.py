"""The page in a real browser: what is drawn, hovered, slid and typed, on a desk and on a phone, by day and by night."""

import csv
import json
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from vidlit.report import write_report
from vidlit.report.server import Watch
from vidlit.runs.directory import RunDirectory

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
GONE = "Failed to load resource: net::ERR_"
"""What a browser says of a server that has ended."""
LEGEND = ".plot[data-chart=\\'0\\'] .u-legend"
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>" & more'


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("THE PAGE WAS NOT TRIED IN A BROWSER: no Chromium on PATH (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="THE PAGE WAS NOT TRIED: no playwright")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # tests may run as root
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser):
    """Opens an address; whatever the console says is an error of the test's."""
    contexts, said = [], []

    def opened(address, **options):
        context = browser.new_context(**{"viewport": DESK, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address)
        until(page, "document.querySelectorAll('.plot canvas').length > 0 || !document.querySelector('.plot')")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [line for line in said if not line.startswith(GONE)] == []


@pytest.fixture
def run(finished_run, tmp_path):
    ignored = shutil.ignore_patterns("*.ckpt", "weights")
    return RunDirectory(shutil.copytree(finished_run, tmp_path / "runs" / "quickstart" / "0", ignore=ignored))


@contextmanager
def served(root):
    watch = Watch(root, port=0)
    thread = threading.Thread(target=watch.serve)
    thread.start()
    try:
        yield watch.address
    finally:
        watch.stop()
        thread.join(20)


def until(page, expression, timeout=15):
    """Wait until something holds in the page; playwright's own way would need `eval`, which the page forbids."""
    began = time.monotonic()
    while not page.evaluate(expression):
        assert time.monotonic() - began < timeout, expression
        page.wait_for_timeout(50)


def legend(page, chart):
    """Names and values: `step0Validation loss0.0 %`."""
    return page.inner_text(f".plot[data-chart='{chart}'] .u-legend")


def inked(page, chart, box=None):
    """How many pixels of a chart's canvas are drawn on."""
    return page.evaluate(
        """chart => { const canvas = document.querySelector(`.plot[data-chart="${chart}"] canvas`);
        const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        return pixels.filter((each, nth) => nth % 4 === 3 && each > 0).length; }""",
        chart,
    )


def test_the_report_opens_from_disk(finished_run, open_page):
    page = open_page(RunDirectory(finished_run).report.as_uri())
    plots = page.locator(".plot")
    assert plots.count() >= 12
    assert page.locator(".plot canvas").count() == plots.count()
    assert all(inked(page, str(number)) > 500 for number in range(plots.count()))
    until(page, "[...document.querySelectorAll('video')].every(each => each.videoWidth > 0)")
    # Hovering names the step and the values there; without it the latest stand there.
    latest = legend(page, "0")
    over = page.locator(".plot[data-chart='0'] .u-over")
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + box["height"] / 2)
    until(page, f"document.querySelector('{LEGEND}').innerText.startsWith('step0Validation loss0.0 %')")
    assert legend(page, "0") != latest


@pytest.mark.slow
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_every_screen(finished_run, open_page, viewport, scheme):
    page = open_page(RunDirectory(finished_run).report.as_uri(), viewport=viewport, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    for plot in page.locator(".plot").all():
        box = plot.locator("canvas").bounding_box()
        assert 150 < box["width"] <= viewport["width"]
    paper, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    light = [sum(map(int, colour[4:-1].split(", "))) for colour in (paper, ink)]
    assert (light[0] > light[1]) == (scheme == "light")


@pytest.mark.slow
def test_a_chart_is_looked_at_closer(finished_run, open_page):
    page = open_page(RunDirectory(finished_run).report.as_uri())
    over = page.locator(".plot[data-chart='0'] .u-over")
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    assert page.locator("#whole").is_hidden()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 60, steps=5)
    page.mouse.up()
    page.locator("#whole").wait_for(state="visible")
    page.mouse.move(box["x"] + 3, box["y"] + 50)
    page.wait_for_timeout(200)
    assert not legend(page, "0").startswith("step0")  # step 0 is out of sight
    page.mouse.dblclick(box["x"] + 100, box["y"] + 50)
    page.locator("#whole").wait_for(state="hidden")


@pytest.mark.slow
def test_smoothing_log_scale_and_axes(finished_run, open_page):
    page = open_page(RunDirectory(finished_run).report.as_uri())
    before = page.inner_text("#curves .u-legend >> nth=0")
    page.fill("#smoothing", "0.8")
    until(page, "document.querySelector('#curves .u-legend').innerText.includes('each value')")
    assert page.inner_text("#smoothed") == "0.80"
    assert page.inner_text("#curves .u-legend >> nth=0") != before
    page.fill("#smoothing", "0")
    title = "Loss at fixed noise"
    chart = page.locator("figure", has=page.locator("h3", has_text=title)).locator(".plot").get_attribute("data-chart")
    linear = inked(page, chart)
    page.check("#logarithmic")
    page.wait_for_timeout(200)
    assert inked(page, chart) != linear
    for axis, words in (("exposures", "exposures"), ("seconds", "time")):
        page.select_option("#axis", axis)
        until(page, f"document.querySelector('#curves .u-legend').innerText.includes('{words}')")


@pytest.mark.slow
def test_samples_by_prompt_and_step(finished_run, open_page):
    page = open_page(RunDirectory(finished_run).report.as_uri())
    parts = json.loads(
        page.inner_text("#page-data") or page.evaluate("document.getElementById('page-data').textContent")
    )
    rows = parts["parts"]["data samples"]
    assert page.inner_text("#sample-at") == "12"
    page.focus("#viewer")
    shown = page.get_attribute("#sample-video", "src")
    for step in ("8", "4", "0", "0"):
        page.keyboard.press("ArrowLeft")
        assert page.inner_text("#sample-at") == step
    assert page.get_attribute("#sample-video", "src") != shown
    assert f"step 0; prompt of a {'training' if rows[0]['side'] == 'train' else 'validation'} clip" in page.inner_text(
        "#sample-words"
    )
    assert rows[0]["shots"][0]["nearest"] in page.inner_text("#near-words")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#sample-prompt") == rows[1]["prompt"]
    assert page.locator("#sample-strip [aria-selected=true]").inner_text() == rows[1]["prompt"]
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert page.inner_text("#sample-prompt") == rows[-1]["prompt"]
    until(page, "!document.getElementById('sample-video').paused")
    page.keyboard.press(" ")
    until(page, "document.getElementById('sample-video').paused")
    page.fill("#sample-step", "2")  # the slider
    assert page.inner_text("#sample-at") == "8"
    page.click("#sample-strip button >> nth=0")
    assert page.inner_text("#sample-prompt") == rows[0]["prompt"]


@pytest.mark.slow
def test_words_of_strangers_are_words(run, open_page):
    """A caption, a group and a reason that are HTML, in the page from disk and in the live one."""
    with run.dataset.open(newline="") as file:
        clips = list(csv.DictReader(file))
    with run.dataset.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(clips[0]))
        writer.writeheader()
        writer.writerows({**clip, "caption": HOSTILE, "group": HOSTILE} for clip in clips)
    run.left_out.write_text(f'name,what,reason\n"{HOSTILE.replace(chr(34), chr(34) * 2)}",quarantined,x\n')
    for note in (run.path / "samples").rglob("*.json"):
        note.write_text(json.dumps(json.loads(note.read_text()) | {"prompt": HOSTILE}))
    with served(run.path.parents[1]) as address:
        for page in (open_page(write_report([run.path]).as_uri()), open_page(f"{address}run?run=quickstart/0")):
            page.wait_for_timeout(500)
            assert page.evaluate("window.hacked") is None
            assert page.inner_text("#sample-prompt") == HOSTILE
            assert HOSTILE in page.inner_text("#clips")
            assert HOSTILE in page.inner_text("#left-out")
            assert page.locator("img").count() == 0


@pytest.mark.slow
def test_clips_are_found_and_played(run, open_page):
    with served(run.path) as address:
        page = open_page(address)
        rows = page.locator("#clips tr:not(:first-child)")
        assert rows.count() == 12
        page.fill("#find", "validation")
        shown = page.locator("#clips tr:not(:first-child):visible")
        assert 0 < shown.count() < 12
        shown.first.locator("button.play").click()
        until(page, "document.querySelector('tr.shown video').videoWidth > 0")
        page.click("#clips tr:visible button.play >> nth=0")
        assert page.locator("tr.shown").count() == 0


@pytest.mark.slow
def test_new_numbers_appear_without_reloading(quickstart, tmp_path, open_page):
    """A real fit beside an open page: the list gets the run, the run's page its checks, its samples and its end."""
    runs = tmp_path / "runs"
    runs.mkdir()
    words = quickstart(trainer__max_steps=60, samples__num_audit=2, samples__every_num_checks=5, samples__num_steps=2)
    with served(runs) as address:
        listed = open_page(address)
        assert "No run yet" in listed.inner_text("#table")
        fit = subprocess.Popen([sys.executable, "-m", "vidlit", *map(str, words)], stdout=subprocess.DEVNULL)
        try:
            listed.wait_for_selector("text=quickstart/0", timeout=120_000)
            page = open_page(f"{address}run?run=quickstart/0")
            page.wait_for_selector("#controls", timeout=120_000, state="attached")  # it had no chart at first
            page.evaluate("window.opened = true")
            page.wait_for_selector(".going", timeout=60_000)
            counted = "document.querySelectorAll('#every-check tr').length"
            before = page.evaluate(counted)
            until(page, f"{counted} > {before}", timeout=120)
            page.wait_for_selector("h1:has-text('Trained all 60 steps')", timeout=240_000)
        finally:
            fit.terminate()
            fit.wait(60)
        assert page.evaluate("window.opened")  # all this without loading the page again
        assert page.locator(".going").count() == 0
        assert page.inner_text("#sample-at") == "60"
        assert "Trained all 60 steps" in page.title()
        listed.wait_for_selector("text=Trained all 60 steps", timeout=30_000)


@pytest.mark.slow
def test_two_runs_are_compared(run, open_page):
    other = RunDirectory(shutil.copytree(run.path, run.path.parent / "1"))
    other.config.write_text(other.config.read_text().replace("lr: 0.002", "lr: 0.004"))
    with served(run.path.parents[1]) as address:
        page = open_page(address)
        for box in page.locator("input[type=checkbox]").all():
            box.check()
        page.click("text=Compare the marked runs")
        page.wait_for_selector("h1:has-text('2 runs side by side')")
        page.wait_for_selector(".plot canvas")
        assert all(name in legend(page, "0") for name in ("quickstart/0", "quickstart/1"))
        assert "model.optimizer.init_args.lr" in page.inner_text("#differences")
        page.select_option("#axis", "exposures")
        until(page, "document.querySelector('.u-legend').innerText.includes('exposures')")
        page.click("text=all runs")
        page.wait_for_selector("text=Compare the marked runs")


@pytest.mark.slow
def test_a_server_that_is_gone_is_told(run, open_page):
    with served(run.path) as address:
        page = open_page(address)
        page.wait_for_timeout(500)
        page.route("**/updates*", lambda route: route.abort())
        page.locator("#lost").wait_for(state="visible", timeout=20_000)
        page.unroute("**/updates*")
        page.locator("#lost").wait_for(state="hidden", timeout=30_000)


@pytest.mark.slow
def test_charts_keep_their_width_and_legends_their_numbers_when_numbers_come(run, open_page):
    head, *rows = run.metrics.read_text().splitlines()
    names = head.split(",")
    with served(run.path) as address:
        page = open_page(address)
        widths = "[...document.querySelectorAll('#curves canvas')].map(each => each.getBoundingClientRect().width)"
        before = page.evaluate(widths)
        row = dict(zip(names, rows[-1].split(","), strict=True))
        row |= {"step": "16", "val/log_ratio": "-0.5", "train_eval/log_ratio": "-0.7", "train/loss": ""}
        with run.metrics.open("a") as file:
            file.write(",".join(row[name] for name in names) + "\n")
        until(page, f"document.querySelector('{LEGEND}').innerText.includes('-39.3 %')")  # 100 (exp(-0.5) - 1)
        page.wait_for_timeout(300)
        assert page.evaluate(widths) == before
        page.set_viewport_size({"width": 900, "height": 800})
        until(page, f"({widths})[0] < 850")


@pytest.mark.slow
def test_a_legend_is_used_with_the_keyboard(finished_run, open_page):
    page = open_page(RunDirectory(finished_run).report.as_uri())
    name = page.locator(".plot[data-chart='0'] .u-legend th").nth(1)
    name.focus()
    page.keyboard.press("Enter")
    until(page, f"document.querySelector('{LEGEND} tr:nth-child(2)').classList.contains('u-off')")
