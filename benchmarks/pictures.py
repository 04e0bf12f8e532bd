"""The pictures of the page in README.md and docs/, taken of a run in a real browser.

python -m benchmarks.pictures runs/quickstart/0
"""

from __future__ import annotations

import argparse
import shutil
import threading
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from vidlit.report.server import Watch

IMAGES = Path(__file__).parents[1] / "docs" / "images"
COLOURS = 96
"""Of a picture: a page has few, and the file is a third as long."""


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=IMAGES)
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    watch = Watch(options.run, port=0)
    serving = threading.Thread(target=watch.serve)
    serving.start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            desk = browser.new_page(viewport={"width": 1200, "height": 1010})
            shoot(desk, watch.address, options.out / "page.png", "h1")
            shoot(desk, watch.address, options.out / "page_samples.png", "#samples")
            dark = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme="dark")
            shoot(dark, watch.address, options.out / "page_dark.png", "#curves")
            phone = browser.new_page(viewport={"width": 390, "height": 844})
            shoot(phone, watch.address, options.out / "page_phone.png", "#curves")
            browser.close()
    finally:
        watch.stop()
        serving.join()


def shoot(page: Page, address: str, out: Path, at: str) -> None:
    """One picture, from a place of the page on."""
    page.goto(address)
    page.wait_for_selector(".plot canvas")
    page.evaluate("at => document.querySelector(at).scrollIntoView()", at if at != "h1" else "body")
    page.wait_for_timeout(1500)  # videos
    page.screenshot(path=out)
    with Image.open(out) as taken:
        taken.convert("RGB").quantize(COLOURS).save(out, optimize=True)
    print(f"{out}: {out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
