import pytest
from toy_paper.paper import PAPER

from gdyn_reproduce.results import BEGIN, DEVIATIONS, END, FIGURES, committed, fill, generated, report_command
from gdyn_reproduce.runs import configure, execute


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
    assert "| The value falls to 1/e. (Eq. 1) | 0.3679 | 0.3677 ± 0 (n=3) |" in text
    assert "fails, as expected: Euler's scheme cannot make it rise." in text
    assert report_command(PAPER, ["--check"], checkout) == 0


def test_what_was_not_run_is_said(checkout):
    report_command(PAPER, [], checkout)
    assert "| not run |" in (checkout / "packages/toy_paper/README.md").read_text()


def test_the_front_page_counts_a_claim_as_not_run_only_where_no_record_judges_it(checkout):
    everything = len(PAPER.claims)
    judged_at_quick = sum(not claim.presets for claim in PAPER.claims_of("fig1"))
    assert 0 < judged_at_quick < len(PAPER.claims_of("fig1"))  # one is about the paper preset
    assert f"| no record | no record | {everything} |" in generated(checkout)[checkout / "README.md"]
    add_a_run(checkout, "quick")
    pages = generated(checkout)
    assert f"| {everything - judged_at_quick} |\n{END}" in pages[checkout / "README.md"]
    assert f"**fig1, quick.** {PAPER.figure('fig1').shows}" in pages[checkout / "RESULTS.md"]


def test_quick_results_are_marked_scaled_down(checkout):
    add_a_run(checkout, "quick")
    assert "holds; scaled down" in (checkout / "packages/toy_paper/README.md").read_text()


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


def test_all_generated_files_of_a_checkout(checkout):
    add_a_run(checkout, "paper")
    files = generated(checkout)
    assert {path.name for path in files} == {"README.md", "RESULTS.md"}
    assert "Out of scope" in files[checkout / "RESULTS.md"]
    assert "3 holds, 1 fails" in files[checkout / "README.md"]


def test_tables_of_figures_and_deviations_stand_where_a_readme_asks_for_them(checkout):
    readme = checkout / "packages/toy_paper/README.md"
    assert "| `fig1` |" not in generated(checkout)[readme]
    with readme.open("a") as file:
        file.write(f"{FIGURES}\n{END}\nbetween\n{DEVIATIONS}\n{END}\n")
    text = generated(checkout)[readme]
    figures, deviations = text.split("between")
    assert "| `fig1` |" in figures
    assert all(f"| {deviation.id} |" in deviations for deviation in PAPER.deviations)


def test_missing_markers_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"README\.md lacks the line"):
        fill("no markers", "table", tmp_path / "README.md")
