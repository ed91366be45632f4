"""The page in a real browser: asking, citations, pinned chunks, cancelling, hostile documents, the keyboard."""

import json
import os
import shutil
import time

import pytest
from refrag_models import make_model, make_tokenizer
from refrag_server import serving

from refrag.inference.generator import RefragGenerator
from refrag.serving.app import Access, create_app
from refrag.serving.worker import ThreadWorker

EVIL = "<script>document.title = 'owned'</script></doc><img src=x onerror=\"document.title='owned'\"> 42"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


class Patient(ThreadWorker):
    """A worker that holds an answer to a "slow" question after its first token, until it is stopped."""

    def run(self, job, tell, stopped):
        def held(name, data):
            tell(name, data)
            until = time.monotonic() + 30
            while name == "token" and "slow" in job["question"] and not stopped() and time.monotonic() < until:
                time.sleep(0.01)

        return super().run(job, held, stopped)


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    path = os.environ.get("LATENTLAB_CHROMIUM", next(filter(None, found), None))
    if path is None:
        pytest.skip("there is no Chromium (set LATENTLAB_CHROMIUM to its path)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def generator():
    return RefragGenerator(make_model(), make_tokenizer(compression=8))


@pytest.fixture
def faults():
    return []


def opened(browser, address, faults, **options):
    page = browser.new_page(**options)
    # A refused request is reported as an error of the console's; the page tells of it itself.
    page.on("console", lambda m: faults.append(m.text) if m.type == "error" and "401" not in m.text else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else faults.append(r.url))
    page.goto(address)
    return page


def asked(page):
    page.click("#go")
    page.wait_for_selector("#go:not([disabled])", timeout=60_000)


def until(page, expression):
    """The page's policy lets nobody evaluate text inside of it, so this asks from outside."""
    for _ in range(600):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(expression)


@pytest.mark.slow
def test_the_page_in_chromium(chromium, generator, faults):
    with serving(create_app([Patient(generator)])) as address:
        page = opened(chromium, address, faults, viewport={"width": 1200, "height": 1000})
        assert page.locator(".doc").count() == 9

        # A hostile document, pasted; nothing of it runs.
        page.evaluate("docs = docs.slice(0, 3); showDocs()")  # the tests' decoder has not the room for more
        page.click("#add")
        page.fill("#paste-name", EVIL)
        page.fill("#paste-text", EVIL)
        page.click("#paste button.main")
        page.locator(".doc").nth(3).wait_for()  # a dialog tells of its end a little later
        assert page.locator(".doc").count() == 4 and EVIL in page.locator(".doc").last.inner_text()

        # Both sides, their numbers and ratios.
        asked(page)
        cells = page.locator("#strip button")
        assert page.locator("#strip button.tokens").count() == int(cells.count() * 0.25 + 0.5)
        live = page.locator("#live-refrag dd").all_inner_texts() + page.locator("#live-full dd").all_inner_texts()
        assert len(live) == 6 and "–" not in live, live
        assert page.locator("#ratios b").count() == 3 and page.locator("#ratios b").nth(1).inner_text().endswith("×")
        assert "rows encoded" in page.inner_text("#cache")

        # Pinned with a click, excluded with another; the strip follows at once, the next answer too.
        vector = page.locator("#strip button:not(.tokens)").first
        label = json.dumps(vector.get_attribute("title"))
        vector.click()
        assert page.locator(f"#strip button.pin.tokens[title={label}]").count() == 1
        asked(page)
        assert page.locator(f"#strip button.pin.tokens[title={label}]").count() == 1
        page.locator(f"#strip button[title={label}]").click()
        assert page.locator(f"#strip button.out:not(.tokens)[title={label}]").count() == 1
        page.fill("#share", "0")
        assert page.locator("#strip button.tokens").count() == 0 and page.inner_text("#share-is") == "0 %"

        # The keyboard: along the strip, and a chunk's state is told.
        page.locator("#strip button").first.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert "chunk" in focused and ", pinned: " in focused, focused

        # A citation leads to its span; a hostile answer stays text.
        citation = "[{doc: docs[0].id, at: 25, start: 4, end: 9}]"
        page.evaluate(f"showAnswer('refrag', '<img src=x onerror=1> 42 [1].', {citation})")
        page.evaluate("docs[0].text = 'x😀y 12345 z'")
        page.locator("#answer-refrag .cite").click()
        assert page.inner_text("mark") == "12345" and page.locator(".doc.cited").count() == 1
        assert "<img src=x onerror=1> 42" in page.inner_text("#answer-refrag")

        # Cancelled in the middle: the worker is free for the next question.
        page.fill("#question", "slow: how many?")
        page.click("#go")
        until(page, "Boolean(sides.refrag && sides.refrag.first)")
        page.click("#stop")
        page.wait_for_selector("#go:not([disabled])", timeout=30_000)
        assert page.inner_text("#error") == "Cancelled."
        page.fill("#question", "How many?")
        asked(page)
        assert not page.is_visible("#error")

        with page.expect_download() as download:
            page.click("#trace")
        trace = json.loads(download.value.path().read_text())
        assert [event["name"] for event in trace["events"]][:3] == ["request_received", "retrieved", "assigned"]
        assert trace["events"][-1]["name"] == "done" and trace["request"]["question"] == "How many?"
        assert page.title() == "refrag" and faults == []

        # On a telephone nothing is wider than the screen.
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        # Every control has a name for a screen reader.
        unnamed = """[...document.querySelectorAll('button, input:not([hidden]), textarea')].filter((e) =>
            !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML)"""
        assert page.evaluate(unnamed) == []
        page.close()

    with serving(create_app([ThreadWorker(generator)], access=Access(token="secret"))) as address:
        page = opened(chromium, address, faults)
        page.evaluate("docs = docs.slice(0, 3); showDocs()")
        page.click("#go")
        page.fill("#token-text", "secret")
        page.click("#token button.main")
        until(page, "Boolean(trace && trace.events.length && trace.events.at(-1).name === 'done')")
        assert faults == []
