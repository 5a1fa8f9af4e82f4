"""The web demo in a real browser, where there is one ($POLYREC_CHROMIUM or chromium) and playwright is installed."""

import base64
import os
import shutil

import pandas as pd
import pytest

pytest.importorskip("gradio", reason="pip install 'polyrec[web]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")

from polyrec.cli.main import main  # noqa: E402
from polyrec.web.page import build_page, launch_options  # noqa: E402
from polyrec.web.serve import open_session  # noqa: E402

BROWSER = os.environ.get("POLYREC_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
# What a visitor cannot read: boxes that reach beyond the window or hide a part of their text, and labels that stand on
# their end, a letter per line.
UNREADABLE = """() => {
  const seen = e => { const r = e.getBoundingClientRect(); return r.width > 0 && r.height > 0 };
  const all = [...document.querySelectorAll("gradio-app *")].filter(seen);
  const beyond = all.filter(e => e.getBoundingClientRect().right > innerWidth + 1);
  const texts = [...document.querySelectorAll(".polyrec-words *, .polyrec-note, .polyrec-bars dt, .polyrec-bars dd")];
  const cut = texts.filter(seen).filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0);
  const upright = [...document.querySelectorAll(".polyrec-bars dt, button, label span")].filter(seen).filter(e => {
    const r = e.getBoundingClientRect(); return e.textContent.trim().length > 3 && r.height > 3 * r.width });
  return [...beyond, ...cut, ...upright].map(e => `${e.tagName}.${e.className}: ${e.textContent.slice(0, 40)}`);
}"""


@pytest.mark.skipif(BROWSER is None, reason="no browser")
def test_one_event_is_changed(recipe_file):
    """A page that answers a client but not a visitor, cuts texts off, breaks on a telephone, or asks the internet for something."""
    items = pd.read_parquet(recipe_file.parent / "items.parquet")
    titles = [
        f"{title}, a title that is much longer than a telephone is wide" if n % 2 else title
        for n, title in enumerate(items["title"])
    ]
    items.assign(title=titles, poster=PNG).to_parquet(recipe_file.parent / "items.parquet")
    assert main(["train", str(recipe_file), "--set", "training.num_train_epochs=1"]) == 0
    built = build_page(open_session(str(recipe_file.parent / "run"), k=5))
    _, address, _ = built.launch(prevent_thread_lock=True, **launch_options("127.0.0.1"))
    errors, asked = [], set()
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: asked.add(request.url))
        page.goto(address)
        title = next(t for t in titles if t.startswith("title 8"))
        page.get_by_label("Search titles").fill(title)
        page.get_by_label("Search titles").press("Enter")
        sync_api.expect(page.get_by_label("Item", exact=True)).to_have_value(f"{title} [8]", timeout=60_000)
        page.get_by_role("button", name="Add to history").click()
        sync_api.expect(page.get_by_label(f"1. {title} [8] (rating 5.0)")).to_be_checked(timeout=60_000)
        first = page.locator(".polyrec-list").inner_text()
        page.get_by_label("rating", exact=True).click()
        page.get_by_role("option", name="1.0").click()
        page.get_by_label(f"1. {title} [8] (rating 5.0)").focus()  # from the event to its button without a mouse
        page.keyboard.press("Tab")
        sync_api.expect(page.get_by_role("button", name="Change feedback")).to_be_focused()
        page.keyboard.press("Enter")
        sync_api.expect(page.get_by_label(f"1. {title} [8] (rating 1.0)")).to_be_checked(timeout=60_000)
        sync_api.expect(page.locator("body")).not_to_contain_text("Error")
        assert page.locator(".polyrec-list").inner_text() != first
        loaded = "[...document.querySelectorAll('.polyrec-cover img')].map(i => i.complete && i.naturalWidth > 0)"
        assert page.evaluate(loaded) == [True] * 5
        for width in (1280, 400):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate(UNREADABLE) == []
        browser.close()
    built.close()
    assert errors == []
    assert all(url.startswith((address, "data:", "blob:")) for url in asked)
