import html.parser
import os
import re
import subprocess
import sys

import pytest
from toy_paper.paper import PAPER

from gdyn_reproduce.records import load_records
from gdyn_reproduce.report import compare, main, write_report
from gdyn_reproduce.runs import configure, execute

FIG1 = PAPER.figure("fig1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    for preset in ("quick", "paper"):
        execute(PAPER, FIG1, configure(FIG1, preset, out=str(out)), preset)
    return out


class Page(html.parser.HTMLParser):
    """Collects what a browser would fetch, and checks that tags close."""

    VOID = frozenset({"meta", "link", "input", "img", "br"})

    def __init__(self):
        super().__init__()
        self.open, self.links, self.alts = [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.links += [values[name] for name in ("src", "href") if name in values]
        if tag == "img":
            self.alts.append(values["alt"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_one_self_contained_file(runs, tmp_path):
    page = Page()
    text = write_report(load_records(runs), tmp_path).read_text()
    page.feed(text)
    assert page.open == []
    paper = "https://arxiv.org/abs/0000.00000"  # a link to follow; nothing is loaded from it
    assert all(link == paper or link.startswith(("data:", "#")) for link in page.links)
    assert sum(link.startswith("data:image/") for link in page.links) == 2
    assert not re.search(r"https?://", re.sub(r"base64,[^\"]*", "", text).replace(paper, ""))


def test_every_claim_is_told_in_full(runs, tmp_path):
    text = write_report(load_records(runs), tmp_path).read_text()
    for claim in PAPER.claims_of("fig1"):
        assert claim.statement in text
        assert claim.because in text
    assert "gdyn-toy-paper run fig1 preset=paper" in text
    markdown = (tmp_path / "report.md").read_text()
    assert markdown.count("| toy_paper | fig1") == 8


def test_text_from_records_is_escaped(runs, tmp_path):
    records = load_records(runs)
    path = records[0].folder / "result.json"
    path.write_text(path.read_text().replace("The value falls.", "<script>alert(1)</script>"))
    try:
        assert "<script>alert" not in write_report(load_records(runs), tmp_path).read_text()
    finally:
        path.write_text(path.read_text().replace("<script>alert(1)</script>", "The value falls."))


def test_compare_puts_claims_side_by_side(runs):
    table = compare(load_records(runs / "toy_paper/fig1/quick"), load_records(runs))
    rows = [line for line in table.splitlines() if "fig1.rate" in line]
    assert len(rows) == 2
    assert [row.count("| - |") for row in rows] == [2, 0]


def test_controls_are_listed_and_one_that_is_not_rejected_fails(runs, tmp_path, capsys):
    assert main(["controls", str(runs)]) == 0
    table = capsys.readouterr().out
    assert table.count("rate set to 0: ") == 3  # of two claims, one of which is judged at paper size only
    assert "not rejected" not in table
    config = configure(FIG1, "quick", out=str(tmp_path), rates=[0.5, 1e-4])
    execute(PAPER, FIG1, config, "quick")
    path = next(tmp_path.rglob("result.json"))
    path.write_text(path.read_text().replace('"rejected": true', '"rejected": false'))
    assert main(["controls", str(tmp_path)]) == 1
    assert "not rejected" in capsys.readouterr().out


def test_build_fails_on_a_surprise_and_on_nothing(runs, tmp_path, capsys):
    assert main(["build", str(runs), "--out", str(tmp_path / "a")]) == 0
    assert main(["build", str(tmp_path), "--out", str(tmp_path / "b")]) == 2
    assert "No finished run" in capsys.readouterr().err
    for changes, code in (([], 1), (["rates=[0.1]"], 0)):  # nothing is registered for settings of one's own
        surprising, page = tmp_path / f"surprising{code}", tmp_path / f"page{code}"
        config = configure(FIG1, "quick", out=str(surprising), rates=[0.1])
        execute(PAPER, FIG1, config, "quick", changes)
        assert main(["build", str(surprising), "--out", str(page)]) == code
        assert ("Not as registered" in (page / "index.html").read_text()) is bool(code)
    assert main(["build", "--unmodified", str(surprising), "--out", str(tmp_path / "d")]) == 2


@pytest.mark.skipif(os.name != "posix", reason="closes a pipe")
def test_a_reader_that_has_seen_enough_of_a_table_leaves_no_traceback(runs):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", "import sys; from gdyn_reproduce.report import main; sys.exit(main())"]
    folder = str(runs)
    done = subprocess.run(
        [*command, "compare", folder, folder], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert "Traceback" not in done.stderr
    assert "Errno" not in done.stderr
