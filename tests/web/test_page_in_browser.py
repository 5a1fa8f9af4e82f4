"""The web demo in a real browser, where there is one ($POLYREC_CHROMIUM or chromium) and playwright is installed."""

import os
import shutil

import pytest

pytest.importorskip("gradio", reason="pip install 'polyrec[web]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")

from polyrec.cli.main import main  # noqa: E402
from polyrec.web.guard import guarded  # noqa: E402
from polyrec.web.page import THEME, build_page  # noqa: E402
from polyrec.web.serve import open_session  # noqa: E402

BROWSER = os.environ.get("POLYREC_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no browser")
def test_one_event_is_changed(recipe_file):
    """A page that answers a client but not a visitor, breaks on a telephone, or asks the internet for something."""
    assert main(["train", str(recipe_file), "--set", "training.num_train_epochs=1"]) == 0
    built = build_page(open_session(str(recipe_file.parent / "run"), k=5))
    _, address, _ = built.launch(prevent_thread_lock=True, quiet=True, share=False, theme=THEME, **guarded("127.0.0.1"))
    errors, asked = [], set()
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: asked.add(request.url))
        page.goto(address)
        page.get_by_label("Search titles").fill("title 7")
        page.get_by_label("Search titles").press("Enter")
        sync_api.expect(page.get_by_label("Item", exact=True)).to_have_value("title 7 [7]", timeout=60_000)
        page.get_by_role("button", name="Add to the history").click()
        event = page.get_by_label("Event of the history (1)")
        sync_api.expect(event).to_have_value("1. title 7 [7] (rating 5.0)", timeout=60_000)
        first = page.locator("body").inner_text()
        page.get_by_label("rating", exact=True).click()
        page.get_by_role("option", name="1.0").click()
        page.get_by_role("button", name="Change its feedback").click()
        sync_api.expect(event).to_have_value("1. title 7 [7] (rating 1.0)", timeout=60_000)
        sync_api.expect(page.locator("body")).not_to_contain_text("Error")
        assert page.locator("body").inner_text() != first
        page.set_viewport_size({"width": 400, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        browser.close()
    built.close()
    assert errors == []
    assert all(url.startswith((address, "data:", "blob:")) for url in asked)
