"""The report in a real browser: it opens, fetches nothing, runs no script, and nothing sticks out of the page."""

import re
import shutil
import subprocess

import pytest

import luban
from luban import pages
from tests import mixed

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """
<script>
addEventListener("load", () => {
  const wide = [...document.querySelectorAll("main > *, svg, table")].filter(
    e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".wide, figure"));
  const broken = [...document.images].filter(i => !i.naturalWidth);
  document.title = `wide ${wide.length} broken ${broken.length} svg ${document.querySelectorAll("svg").length}`;
});
</script>
"""
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium here")]


@pytest.fixture(scope="module")
def page():
    model = luban.train(
        mixed.rows(200), ("returned", "refund"), size="nano", epochs=3, types={"review": "text", "photo": "image"}
    )
    model = model.with_report(model.explain(mixed.rows(3, seed=1), rows=2))
    return pages.full_report(model).to_html()


def opened(html: str, path, width: int) -> str:
    """The page's DOM after loading, as the browser prints it."""
    path.write_text(html, encoding="utf-8")
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--window-size={width},900",
        "--dump-dom",
        path.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.parametrize("width", [420, 1100])
def test_nothing_sticks_out_and_every_picture_shows(page, tmp_path, width):
    probed = re.sub(r"<meta http-equiv=.Content-Security-Policy.[^>]*>", "", page).replace("</body>", PROBE + "</body>")
    title = re.search(r"<title>(.*?)</title>", opened(probed, tmp_path / "page.html", width)).group(1)
    assert re.fullmatch(r"wide 0 broken 0 svg [1-9]\d*", title), title


def test_no_script_runs(page, tmp_path):
    """Control: the probe, left under the page's own policy, changes nothing."""
    dom = opened(page.replace("</body>", PROBE + "</body>"), tmp_path / "page.html", 1100)
    assert "wide " not in re.search(r"<title>(.*?)</title>", dom).group(1)
