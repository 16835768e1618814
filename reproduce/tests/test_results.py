import json
from types import SimpleNamespace

import pytest
from toy_paper.paper import PAPER

from gdyn_reproduce.ledger import committed
from gdyn_reproduce.results import BEGIN, DEVIATIONS, END, draw, fill, generated, report_command, tally
from gdyn_reproduce.runs import configure, execute
from gdyn_reproduce.verdicts import make_verdict


@pytest.fixture
def checkout(tmp_path):
    package = tmp_path / "packages" / "toy_paper"
    (package / "results").mkdir(parents=True)
    (package / "pyproject.toml").touch()
    for readme in (tmp_path / "README.md", package / "README.md"):
        readme.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    return tmp_path


def add_a_run(checkout, preset):
    fig1 = PAPER.figure("fig1")
    record = execute(PAPER, fig1, configure(fig1, preset, out=str(checkout / "runs")), preset)
    return report_command(PAPER, ["--add", str(record.folder)], checkout)


def test_an_added_run_fills_the_table_and_the_check_agrees(checkout):
    assert report_command(PAPER, ["--check"], checkout) == 1
    assert add_a_run(checkout, "paper") == 0
    text = (checkout / "packages/toy_paper/README.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert (
        "| [`fig1`](results/fig1-paper.png), [code](src/toy_paper/decay.py) | Values fall exponentially. | "
        "paper size: 2 holds, 1 fails; scaled: 2 not run; our checks: 1 holds | `quick`: 1 s; `paper`: 2 s |"
    ) in text
    assert "| `fig2`, [code](src/toy_paper/decay.py) | The same, long. |  | " in text
    assert report_command(PAPER, ["--check"], checkout) == 0


def test_large_arrays_stay_in_the_run_folder(checkout, monkeypatch):
    add_a_run(checkout, "paper")
    arrays = checkout / "packages/toy_paper/results/fig1-paper.npz"
    assert arrays.exists()
    monkeypatch.setattr("gdyn_reproduce.results._LARGEST_ARRAYS", 10)
    add_a_run(checkout, "paper")
    assert not arrays.exists()
    assert report_command(PAPER, ["--check"], checkout) == 0


def test_a_row_per_claim_has_interval_control_and_reason(checkout):
    add_a_run(checkout, "paper")
    text = generated(checkout)[checkout / "RESULTS.md"]
    row = (
        "| The value falls to 1/e. (Eq. 1) *number, registered before* | 0.3679 | 0.3678 ± 0.0001299 (n=3); "
    )
    assert row in text
    assert "Control: rate set to 0: 1 ± 0.0003528 (n=3), rejected" in text
    control = "Control: none can exist: nothing makes it rise."
    reason = "Expected outcome fails: Euler's scheme cannot make it rise."
    assert f"| **fails** (paper size, `fig1` `paper`). {control} {reason} |" in text


def test_what_was_not_run_is_said(checkout):
    assert "| **not run** (`fig1`, any preset) |" in generated(checkout)[checkout / "RESULTS.md"]


def test_the_front_page_counts_claims_of_the_paper_and_never_checks(checkout):
    readme = checkout / "README.md"
    assert "| 3 not run | 2 not run |" in generated(checkout)[readme]  # one is about the paper preset
    add_a_run(checkout, "quick")
    pages = generated(checkout)
    assert "| 3 not run | 1 holds, 1 fails |" in pages[readme]
    assert (
        f"**fig1, quick.** Expected: {PAPER.figure('fig1').shows} Measured: 2 of 3 claims hold."
        in pages[checkout / "RESULTS.md"]
    )


def test_results_begin_with_the_tally_and_then_tell_what_does_not_hold(checkout):
    add_a_run(checkout, "quick")
    text = generated(checkout)[checkout / "RESULTS.md"]
    assert "| `toy_paper` | statement | scaled |  | 1 |  |  |  |" in text
    assert "| `toy_paper` | check | scaled | 1 |  |  |  |  |" in text
    assert "| `toy_paper` | statement | paper size |  |  |  |  | 2 |" in text
    table, failing, everything = (
        text.index(part) for part in ("| kind |", "### What fails", "### All claims")
    )
    assert table < failing < everything
    assert "- **fails** `fig1.rises` (statement, scaled): The value doubles." in text[failing:everything]
    assert "Euler's scheme cannot make it rise." in text[failing:everything]


def test_of_several_records_of_a_claim_the_worst_counts():
    def record(outcome):
        claims = [claim for claim in PAPER.claims if claim.id == "fig1.rate"]
        return SimpleNamespace(verdicts=[make_verdict(claim, outcome, "", "scaled") for claim in claims])

    for outcomes, worst in (
        (["holds", "fails"], "fails"),
        (["stale", "holds"], "stale"),
        (["holds"], "holds"),
    ):
        counts = tally(PAPER, [record(outcome) for outcome in outcomes], ["number"], ["scaled"])
        assert counts == {worst: 1}


def test_scaled_results_say_so(checkout):
    add_a_run(checkout, "quick")
    assert "| **holds** (scaled, `fig1` `quick`)" in generated(checkout)[checkout / "RESULTS.md"]


def test_a_changed_record_is_noticed(checkout):
    add_a_run(checkout, "quick")
    path = checkout / "packages/toy_paper/results/fig1-quick.json"
    path.write_text(path.read_text().replace("0.366", "0.365"))
    assert report_command(PAPER, ["--check"], checkout) == 1


def test_a_smoke_run_is_not_quoted(checkout):
    with pytest.raises(ValueError, match="smoke run"):
        add_a_run(checkout, "smoke")


def test_records_come_in_the_order_of_the_paper(checkout):
    for preset in ("paper", "quick"):
        add_a_run(checkout, preset)
    records = committed(checkout / "packages/toy_paper/results", PAPER)
    assert [record.header.preset for record in records] == ["quick", "paper"]


def test_a_readme_shows_no_picture_of_earlier_code_where_there_is_another(checkout):
    for preset in ("quick", "paper"):
        add_a_run(checkout, preset)
    readme = checkout / "packages/toy_paper/README.md"
    assert "results/fig1-paper.png" in generated(checkout)[readme]
    record = checkout / "packages/toy_paper/results/fig1-paper.json"
    body = json.loads(record.read_text())
    body["header"]["code"] = "of last year"
    record.write_text(json.dumps(body))
    assert "results/fig1-quick.png" in generated(checkout)[readme]


def test_all_generated_files_of_a_checkout(checkout):
    add_a_run(checkout, "paper")
    files = generated(checkout)
    assert {path.name for path in files} == {"README.md", "RESULTS.md", "answers.json"}
    assert "Out of scope" in files[checkout / "RESULTS.md"]
    assert "2 holds, 1 fails" in files[checkout / "README.md"]


def test_a_readme_that_asks_for_them_gets_the_deviations(checkout):
    readme = checkout / "packages/toy_paper/README.md"
    assert "| D1 |" not in generated(checkout)[readme]
    with readme.open("a") as file:
        file.write(f"{DEVIATIONS}\n{END}\n")
    assert all(f"| {deviation.id} |" in generated(checkout)[readme] for deviation in PAPER.deviations)


def test_missing_markers_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"README\.md lacks the line"):
        fill("no markers", "table", tmp_path / "README.md")


def test_a_committed_picture_is_drawn_anew_from_its_numbers(checkout):
    add_a_run(checkout, "paper")
    picture = checkout / "packages/toy_paper/results/fig1-paper.png"
    before = picture.read_bytes()
    picture.write_bytes(b"")
    draw(picture.parent, ["fig1-paper"])
    assert picture.read_bytes() == before
    with pytest.raises(FileNotFoundError, match="fig2-paper"):
        draw(picture.parent, ["fig2-paper"])
