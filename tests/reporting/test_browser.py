"""The page in a real browser, where there is one: $POLYREC_CHROMIUM, or chromium or google-chrome on the path."""

import os
import re
import shutil
import subprocess

import pytest
from run_fixtures import trained_run

from polyrec.cli.main import main

BROWSER = os.environ.get("POLYREC_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
# A frame of the width of a telephone: browsers do not make windows that narrow.
FRAME = """<!doctype html><body><iframe id="f" src="report.html" style="border:0;width:WIDTHpx;height:2000px"></iframe>
<p id="found"></p><script>
onload = () => {
  const page = document.getElementById("f").contentDocument;
  const images = [...page.images].filter(i => i.complete && i.naturalWidth > 0 && i.clientWidth <= WIDTH).length;
  const sentences = [...page.querySelectorAll("table.words")];
  const tables = [...page.querySelectorAll("table")], right = e => e.getBoundingClientRect().right;
  const filled = Math.max(...[...page.querySelectorAll(".row")].map(r => Math.max(...[...r.querySelectorAll("img")].map(right))));
  const beyond = [...tables, ...page.images].filter(e => right(e) > WIDTH).length;
  const unreachable = tables.filter(t => t.scrollWidth > t.clientWidth && t.tabIndex < 0).length;
  const cut = sentences.filter(t => t.scrollWidth > t.clientWidth).length;
  document.getElementById("found").textContent =
    `sentences ${sentences.length} cut ${cut} beyond ${beyond} unreachable ${unreachable} filled ${filled / WIDTH} width ${page.documentElement.scrollWidth} images ${images} of ${page.images.length} mode ${page.compatMode}`;
};
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="no browser")
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits_and_says_nothing_on_the_console(width, tmp_path_factory, folder):
    """Prevents a page that must be scrolled sideways on a telephone, cuts reasons off, leaves half of a desk's
    window empty, lacks pictures or needs a network."""
    (folder / "frame.html").write_text(FRAME.replace("WIDTH", str(width)))
    options = (
        "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --allow-file-access-from-files "
        "--enable-logging=stderr --virtual-time-budget=5000 --window-size=1400,2100 --dump-dom"
    )
    place = f"--user-data-dir={tmp_path_factory.mktemp('profile')}"
    command = [BROWSER, *options.split(), "--host-resolver-rules=MAP * ~NOTFOUND", place, f"file://{folder}/frame.html"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in ran.stderr
    assert re.search(r"sentences [1-9]\d* cut 0 ", ran.stdout), ran.stdout[-500:]
    assert "beyond 0 unreachable 0 " in ran.stdout, ran.stdout[
        -500:
    ]  # tables scroll in their own boxes, by keyboard, too
    filled = re.search(r"filled ([.\d]+)", ran.stdout)
    assert float(filled[1]) > 0.85, ran.stdout[-500:]  # plots stand beside each other: no half of the page is empty
    found = re.search(r"width (\d+) images (\d+) of (\d+) mode CSS1Compat", ran.stdout)
    assert found, ran.stdout[-500:]
    assert int(found[1]) <= width
    assert found[2] == found[3] != "0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    run = trained_run(tmp_path_factory.mktemp("browser"))
    assert main(["report", str(run), "--num-users", "1"]) == 0
    return run
