"""The page in a real browser: pick articles, see the ranking and its reasons change."""

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from factory import make_news

from latentlab_shared.serving import listen
from nrms.model.folder import LoadedModel
from nrms.server.app import create_app
from nrms.server.article_recommender.calculate_embeddings import embed_pending
from nrms.server.settings import Settings
from nrms.server.store import Store

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
ARGUMENTS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")


@pytest.fixture
def address(tmp_path: Path, model: LoadedModel, model_dir: Path) -> Iterator[str]:
    """A running server over 30 articles."""
    url = f"sqlite:///{tmp_path / 'x.db'}"
    store = Store(url)
    store.articles.add([*make_news(29), make_news(1, start=29)[0].__class__("evil", "<b>w1</b> & w2", "<i>odd</i>")])
    embed_pending(store, model, str(model_dir))
    store.models.activate(model.model_id)
    store.close()
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(create_app(Settings(url, token="")), log_level="warning"))
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    server.should_exit = True
    thread.join()


def test_picking_articles_changes_the_ranking(address: str, tmp_path: Path) -> None:
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#ranking li .place")
        page.wait_for_selector("#shelf button")
        assert "newest" in page.locator("#note").inner_text()
        assert page.locator("#shelf button").count() == 30

        def wait_until(condition: str) -> None:
            """The page's policy forbids it to evaluate strings, so the looking is done from here."""
            end = time.monotonic() + 30
            while not page.evaluate(condition):
                assert time.monotonic() < end, condition
                time.sleep(0.02)

        def ranking() -> list[str]:
            return page.evaluate("[...document.querySelectorAll('#ranking li')].map((li) => li.dataset.id)")

        def after(action) -> list[str]:
            turn = page.evaluate("document.body.dataset.turn")
            action()
            wait_until(f"document.body.dataset.turn !== {turn!r}")
            return ranking()

        before = ranking()
        one = after(lambda: page.locator("#shelf button").nth(2).click())
        read = page.locator("#shelf button").nth(2).get_attribute("data-id")
        assert read not in one and one != before and page.locator("#note").is_hidden()
        two = after(lambda: page.locator("#shelf button").nth(9).click())
        assert two != one
        assert page.locator("#read li").count() == 2
        shares = [int(text.rstrip(" %")) for text in page.locator("#read .share").all_inner_texts()]
        assert 99 <= sum(shares) <= 101
        assert page.locator("#ranking .why em").count() >= 10  # reasons, with their part of the score
        assert set("".join(page.locator("#ranking .move").all_inner_texts())) & set("▲▼n")
        only = after(lambda: page.locator("#only").select_option("sports"))
        assert only and set(page.locator("#ranking .tag").all_inner_texts()) == {"sports"}
        after(lambda: page.locator("#only").select_option(""))
        page.locator("#words").fill("w1 w2")
        wait_until("document.querySelectorAll('#shelf button').length < 30")
        evil = page.locator("#shelf button[data-id=evil]")
        assert "<b>w1</b> & w2" in evil.inner_text()  # shown as it is, not run
        assert after(lambda: page.locator("#read button").first.click()) == one
        assert after(lambda: page.locator("#clear").click()) == before
        page.set_viewport_size({"width": 400, "height": 800})
        assert page.evaluate(
            "document.documentElement.scrollWidth <= window.innerWidth"
        )  # a telephone needs no sideways
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        assert (tmp_path / "page.png").stat().st_size > 10_000
        assert said == []
        browser.close()
