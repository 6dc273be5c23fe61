"""Pictures of the demo for its page: python scripts/demo_pictures.py -o docs/img

Starts a demo of its own, uses it as a visitor does (an edit, a painted mask, a comparison) and keeps ``demo-edit.png``,
``demo-inpaint.png`` and ``demo-compare.png``. Seeds are kept, so the results are the same every time; times are of this
machine. Needs what the browser tests need: Playwright and a Chromium of the system.
"""

from __future__ import annotations

import argparse
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from genkit.demo.serve import Address, make_offer, running
from genkit.errors import UnsupportedError

NAMES = ("edit", "inpaint", "compare")
#: Of a window in pixels, and down to where its picture goes.
SIZES = {"edit": (1280, 1190), "inpaint": (400, 1180), "compare": (1280, 1200)}
#: Milliseconds until something must have happened, on a machine that does much else.
LONG = 600_000


def photographed(browser: Any, address: str, name: str, seed: int, path: Path) -> None:
    """Use one tab and keep what is seen of it.

    Args:
        browser: of Playwright. address: of the demo.
        name: of the tab.
        seed: of the run.
        path: of the picture.
    """
    width, height = SIZES[name]
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(LONG)
    page.goto(address)
    page.wait_for_selector("#generate-go")
    page.get_by_role("tab", name=name).first.click()
    panel = page.locator(f"#{name}-go").locator("xpath=ancestor::*[@role='tabpanel'][1]")
    panel.get_by_label("Seed").fill(str(seed))
    panel.get_by_label("Keep", exact=True).check()
    if name == "inpaint":
        paint(page)
    else:
        page.click(f"#{name}-go")
        done = "name => document.querySelector(`#${name}-status`).innerText.includes('Done')"
        page.wait_for_function(done, arg=name)
    # The mouse is on nothing, and what moves has come to rest.
    page.mouse.move(2, 2)
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    page.wait_for_timeout(2000)
    page.screenshot(path=path)
    page.close()


def paint(page: Any) -> None:
    """Paint over the upper half of the example's circle and let the mask be shown."""
    canvas = page.locator("#inpaint-canvas canvas").first
    canvas.wait_for()
    # The example is loaded when the canvas has another zoom than an empty one.
    page.wait_for_function("!document.querySelector('#inpaint-canvas').innerText.includes('Upload')")
    page.wait_for_timeout(1000)
    box = canvas.bounding_box()
    left, top = box["x"] + box["width"] * 0.36, box["y"] + box["height"] * 0.42
    page.mouse.move(left, top)
    page.mouse.down()
    for step in range(1, 25):
        page.mouse.move(left + step * box["width"] * 0.012, top)
    page.mouse.up()
    page.wait_for_timeout(500)
    page.click("#inpaint-look")
    page.wait_for_selector("#inpaint-seen img")


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES, metavar="TAB", help=f"which, of {', '.join(NAMES)}; all")
    parser.add_argument("--seed", type=int, default=1, help="of every run")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder")
    given = parser.parse_args()
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"no such tab is photographed: {', '.join(sorted(unknown))}; choose from {', '.join(NAMES)}")
    chromium = next((found for name in ("chromium", "chromium-browser") if (found := shutil.which(name))), None)
    if chromium is None:
        raise UnsupportedError("no Chromium is installed here (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with running(partial(make_offer, device="cpu"), Address(port=0)) as blocks, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name in given.names:
            path = given.output / f"demo-{name}.png"
            photographed(browser, blocks.local_url, name, given.seed, path)
            print(path)
        browser.close()


if __name__ == "__main__":
    main()
