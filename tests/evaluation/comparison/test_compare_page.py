"""The page in a browser: it plays, wipes and shows differences, at two widths, without an error or a request."""

from __future__ import annotations

import shutil
from fractions import Fraction

import numpy as np
import pytest

from genkit.evaluation.comparison.numbers import Output, compare_outputs
from genkit.evaluation.comparison.report.write import Report
from genkit.evaluation.comparison.results import Comparison, Found, Row

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Two prompts, a baseline and two variants, one of which failed at the second prompt; a square that moves."""
    folder = tmp_path_factory.mktemp("page")
    rows = [Row("dense", "the model as it is", True), Row("shifted", "moved by four pixels"), Row("broken", "x")]
    comparison = Comparison(rows, ["one", "two"], [0], about={"command_line": "genkit compare one two"})
    keeper = Report(folder / "page.html", played=6)
    for prompt in comparison.prompts:
        outputs = {}
        for number, row in enumerate(rows):
            if row.name == "broken" and prompt == "two":
                row.failed = "out of luck"
                continue
            frames = np.full((6, 48, 64, 3), 40, np.uint8)
            for t in range(6):
                frames[t, 10:20, 5 + 4 * t + 4 * number : 15 + 4 * t + 4 * number] = (220, 40, 40)
            outputs[row.name] = Output(frames, Fraction(8))
            found = Found(prompt, 0, 1.0 + number)
            if number:
                found.numbers = compare_outputs(outputs[row.name], outputs["dense"], False)
            row.runs.append(found)
        keeper.round_ended(comparison, outputs)
    comparison.finished = True
    keeper.write(comparison)
    return folder / "page.html"


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (400, "dark")])
def test_the_page_works(report, width, scheme):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as tool:
        # The page's policy forbids the evaluation of texts, which is how this test asks; requests are watched instead.
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True
        ).new_page()
        wrong, asked = [], []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(report.as_uri())
        page.wait_for_function("tiles.length === 3 && tiles[1].width === 64")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.locator(".summary tbody tr").count() == 3
        assert "broken failed after 1 of 2 outputs: out of luck" in page.inner_text("#alarm")
        # At frame 4 the wipe shows the baseline on the left and the variant on the right.
        page.fill("#frame", "3")
        page.wait_for_function("document.getElementById('count').textContent === '4 / 6'")
        place = "[...stage.a.getContext('2d').getImageData(%d, 15, 1, 1).data].slice(0, 3)"
        assert page.evaluate("stage.a.width") == 64
        assert page.evaluate(place % 18) == [220, 40, 40], "the baseline's square begins at 17"
        assert page.evaluate(place % 40) == [40, 40, 40]
        page.click("button[data-mode=difference]")
        bright = "[...stage.b.getContext('2d').getImageData(%d, 15, 1, 1).data][0]"
        assert page.evaluate(bright % 18) > 100 > 30 > page.evaluate(bright % 25)
        page.click("button[data-mode=side]")
        assert page.evaluate("stage.b.getContext('2d').getImageData(22, 15, 1, 1).data[0]") == 220
        page.click("#play")
        page.wait_for_function("frame !== 3", timeout=20_000)
        page.click("#play")
        page.select_option("#prompt", index=1)
        page.wait_for_function("clips.filter(Boolean).length === 2")
        assert page.locator("#all figure").nth(2).inner_text().endswith("no output")
        assert not wrong and not [url for url in asked if not url.startswith(("file:", "data:"))]
        browser.close()
