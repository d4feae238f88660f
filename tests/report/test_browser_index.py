"""The index, `tnt report` and `dvc plots` in a real browser, from the file system."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from browser import MARKS, axe
from reports import data, page

from tnt.report import site

pytestmark = MARKS
ROOT = Path(__file__).parents[2]
LOCAL = {
    "stages": [{"stage": "train@r1", "cpu_s": 9.0, "wall_s": 5.0, "peak_gib": 1.2, "ended": "now"}],
    "revision": "0123abc, nothing uncommitted",
    "machine": "A processor, 2 cores, Linux",
    "versions": {"Python": "3.11"},
    "note": "",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a report of two rounds, with long and hostile names and what `tnt report` adds."""
    folder = tmp_path_factory.mktemp("report") / "with space"
    pages = [page([]), page([], "r2")]
    found = data(
        pages,
        params={"r1": {"train." + "long_" * 40: "x" * 300}, "r2": {}},
        validated=[{"folder": "d", "suite": "s", "rows": 1, "met": 1, "expectations": 1}],
        probe={"base": {"flagged": 1, "total": 4, "rate": 0.25, "low": 0.1, "high": 0.6, "own": 4}},
    )
    site.write(pages, found, folder)
    (folder / "rounds.csv").write_text("", encoding="utf-8")
    rounds = [{**found["rounds"][0], "metrics": pages[0].metrics}]
    experiment = {"name": "tidy-oar", "rounds": rounds, "params": "train.epochs: 2"}
    site.write_index(found, folder, LOCAL | {"experiments": [experiment]})
    return folder


class Opened:
    """A page, and what it asked and complained of."""

    def __init__(self, chromium, path, scheme="light", width=1200):  # noqa: D107
        self.page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.asked, self.said = [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(path.as_uri())

    def _hear(self, message):
        if message.type == "error":  # Vega warns of scales that are empty until data are there
            self.said.append(message.text)

    def quiet(self):
        """Whether nothing left the machine and nothing went wrong."""
        return not self.said and all(url.startswith(("file:", "data:")) for url in self.asked)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_index_opens_from_the_file_system_for_everyone(chromium, folder, scheme):
    opened = Opened(chromium, folder / "index.html", scheme)
    opened.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    pictures = opened.page.evaluate("[...document.images].map(i => [i.currentSrc, i.naturalWidth])")
    assert len(pictures) == 4
    assert all(width > 0 and f"-{scheme}.svg" in name for name, width in pictures)
    assert opened.quiet(), (opened.said, opened.asked)
    found = axe.Axe().run(opened.page).response["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []
    assert "tidy-oar" in opened.page.inner_text("body")
    opened.page.close()


def test_index_fits_a_phone(chromium, folder):
    opened = Opened(chromium, folder / "index.html", width=320)
    opened.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    widths = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    assert opened.page.evaluate(widths) == [320, 320]
    opened.page.close()


def test_links_lead_somewhere(chromium, folder):
    opened = Opened(chromium, folder / "index.html")
    links = opened.page.evaluate("[...document.links].map(a => a.getAttribute('href'))")
    for link in links:
        if link.startswith("#"):
            assert opened.page.locator(link).count() == 1
        else:
            assert (folder / link).is_file(), link
    opened.page.close()


def test_dvc_plots_draw_without_a_network(chromium, tmp_path):
    environment = os.environ | {
        "DVC_SITE_CACHE_DIR": str(tmp_path / "site"),
        "DVC_NO_ANALYTICS": "1",
    }
    project = tmp_path / "project"
    (project / "data/rounds/r1").mkdir(parents=True)

    def dvc(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=project, env=environment, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip

    dvc("init", "--no-scm", "--quiet")
    shutil.copy(ROOT / ".dvc/config", project / ".dvc")
    for name in ("plots", "plots_page"):
        shutil.copytree(ROOT / ".dvc" / name, project / ".dvc" / name, dirs_exist_ok=True)
    shutil.copy(ROOT / "dvc.yaml", project)
    (project / "params.yaml").write_text("rounds: {r1: {parent: base}}\n", encoding="utf-8")
    (project / "data/rounds.csv").write_text(
        "order,model,prompt_set,detector,flagged,total,flag_rate,low,high,clean_unchanged\n"
        "0,base,replies,sorry,5,10,0.5,0.3,0.7,\n1,r1,replies,sorry,1,10,0.1,0.0,0.4,0.6\n",
        encoding="utf-8",
    )
    (project / "data/rounds/r1/training.csv").write_text(
        "step,epoch,loss\n0,0.5,1.0\n1,1.0,0.5\n", encoding="utf-8"
    )
    written = re.search(r"file://\S+", dvc("plots", "show"))
    opened = Opened(chromium, Path(written[0].removeprefix("file://")))
    opened.page.wait_for_function("document.querySelectorAll('canvas, svg.marks').length >= 2")
    assert opened.quiet(), (opened.said, opened.asked)
    assert opened.page.evaluate(
        "[...document.querySelectorAll('canvas')].every(c => c.width > 100 && c.height > 100)"
    )
    opened.page.close()
