"""What `report --check` refuses, one test for each kind, and the answer key."""

import contextlib
import dataclasses
import hashlib
import json

import pytest
from toy_paper.paper import PAPER

from gdyn_common.storage import read_arrays
from gdyn_reproduce.claims import Claim, Control
from gdyn_reproduce.ledger import debts
from gdyn_reproduce.records import hash_arrays
from gdyn_reproduce.results import BEGIN, END, add, report_command
from gdyn_reproduce.runs import configure, execute

FIG1 = PAPER.figure("fig1")


@pytest.fixture
def checkout(tmp_path):
    package = tmp_path / "packages" / "toy_paper"
    (package / "results").mkdir(parents=True)
    (package / "pyproject.toml").touch()
    (package / "README.md").write_text(f"{BEGIN}\n{END}\n")
    for preset in ("quick", "paper"):
        record = execute(PAPER, FIG1, configure(FIG1, preset, out=str(tmp_path / "runs")), preset)
        report_command(PAPER, ["--add", str(record.folder)], tmp_path)
    return tmp_path


def results(checkout):
    return checkout / "packages/toy_paper/results"


def check(checkout, capsys, paper=PAPER, *, rewrite=True):
    """Write the generated files, so that only the ledger itself can be refused, and check."""
    if rewrite:
        report_command(paper, [], checkout)
    capsys.readouterr()
    code = report_command(paper, ["--check"], checkout)
    return code, capsys.readouterr().out


def changed(claim_id, **changes):
    claims = tuple(
        dataclasses.replace(claim, **changes) if claim.id == claim_id else claim for claim in PAPER.claims
    )
    return dataclasses.replace(PAPER, claims=claims)


def test_a_good_ledger_passes(checkout, capsys):
    assert check(checkout, capsys) == (0, f"{results(checkout).parent} agrees with its records.\n")


def test_a_claim_without_a_control_or_a_reason_is_refused(checkout, capsys):
    code, said = check(checkout, capsys, changed("fig1.rate", control=None))
    assert code == 1
    assert "fig1.rate is a claim of the paper without a control" in said
    assert check(checkout, capsys, changed("fig1.rate", control=None, no_control="an identity"))[0] == 0
    assert check(checkout, capsys, changed("fig1.rate", control=None, kind="check"))[0] == 0


def test_a_control_that_is_not_rejected_is_refused_even_where_the_claim_fails(checkout, capsys):
    for claim, message in (
        ("fig1.rate", "fig1-quick: fig1.rate has a control"),
        ("fig1.rises", "fig1.rises has"),
    ):
        control = Control("decay" if claim == "fig1.rate" else "still_doubles", removes="nothing")
        if claim == "fig1.rises":
            for path in results(checkout).glob("fig1-*.json"):
                body = json.loads(path.read_text())
                body["measurements"]["still_doubles"] = [2.0, 2.01]
                path.write_text(json.dumps(body))
        code, said = check(checkout, capsys, changed(claim, control=control, no_control=""))
        assert code == 1
        assert message in said
        assert "does not reject (nothing:" in said


def test_a_control_says_nothing_where_the_gate_is_closed(checkout, capsys):
    unlike = changed("fig1.rate", control=Control("decay", removes="nothing"), no_control="")
    assert "does not reject (nothing:" in check(checkout, capsys, unlike)[1]
    behind = dataclasses.replace(unlike.claims[0], requires=("fig1.rises",))  # which fails
    code, said = check(checkout, capsys, dataclasses.replace(unlike, claims=(behind, *unlike.claims[1:])))
    assert (code, "does not reject" in said) == (0, False), said


def test_a_record_of_other_code_is_refused_unless_it_may_be_stale(checkout, capsys, monkeypatch):
    monkeypatch.setattr("gdyn_reproduce.sources.digest", lambda *_: "newer")
    code, said = check(checkout, capsys)
    assert code == 1
    assert "fig1-quick was made by other code; run `gdyn-toy-paper run fig1 preset=quick`" in said
    assert "fig1-paper was made by other code; make it anew, or say in debts.json why not." in said
    owed = results(checkout) / "debts.json"
    owed.write_text(json.dumps({"stale": {"fig1-paper": "takes a week", "fig1-quick": "lazy"}}))
    code, said = check(checkout, capsys)
    assert code == 1
    assert "fig1-paper was made" not in said
    assert "fig1-quick was made by other code" in said, "`make reproduce` makes it, so it may not be stale"
    assert "2 of 2 records are stale: fig1-quick, fig1-paper." in said


def test_a_debt_that_is_not_owed_is_refused(checkout, capsys):
    path = results(checkout) / "debts.json"
    path.write_text(json.dumps({"stale": {"fig1-paper": "takes a week"}}))
    code, said = check(checkout, capsys)
    assert (code, "lists fig1-paper, which is not stale; remove the line" in said) == (1, True)
    path.write_text(json.dumps({"stail": {}}))
    with pytest.raises(ValueError, match=r"debts\.json is no list of debts"):
        debts(results(checkout))
    for damaged in (b"[]", b"\xff", b"[" * 10_000):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"debts\.json is damaged") as caught:
            debts(results(checkout))
        assert "\n" not in str(caught.value)


def test_a_value_that_holds_outside_its_printed_band_is_refused(checkout, capsys, monkeypatch):
    monkeypatch.setattr("gdyn_reproduce.report.spell_number", lambda value, *band: f"{value:.1g}")
    code, said = check(checkout, capsys)
    assert code == 1
    assert "fig1-paper: fig1.paper holds, but its value is printed outside its printed band." in said


def test_a_missing_metric_is_refused_with_its_name(checkout):
    with pytest.raises(ValueError, match=r"claim 'fig1.rate' cannot be judged. Unknown metric 'dekay'"):
        report_command(changed("fig1.rate", metric="dekay"), ["--check"], checkout)


def test_a_table_or_key_that_disagrees_is_refused(checkout, capsys):
    key = results(checkout) / "answers.json"
    key.write_text(key.read_text().replace('"holds"', '"fails"', 1))
    code, said = check(checkout, capsys, rewrite=False)
    assert (code, "results/answers.json disagrees" in said) == (1, True)


def test_a_run_of_other_code_is_not_added(checkout, monkeypatch):
    record = execute(PAPER, FIG1, configure(FIG1, "quick", out=str(checkout / "runs")), "quick")
    monkeypatch.setattr("gdyn_reproduce.sources.digest", lambda *_: "newer")
    with pytest.raises(ValueError, match="was made by other code than today's"):
        add(PAPER, record.folder, results(checkout))


def test_a_run_with_other_settings_than_its_preset_is_not_added(checkout):
    config = configure(FIG1, "quick", out=str(checkout / "runs"), num_steps=7)
    record = execute(PAPER, FIG1, config, "quick", ["num_steps=7", "device=cpu"])
    with pytest.raises(ValueError, match=r"other settings than its preset \(num_steps=7\); it is not quoted"):
        add(PAPER, record.folder, results(checkout))


@pytest.mark.parametrize(("seeds", "refused"), [([0, 1], False), ([0, 1, 2, 3], False), ([1, 2], True)])
def test_the_first_seeds_may_be_fewer_or_more_but_none_is_chosen(checkout, seeds, refused):
    record = execute(
        PAPER, FIG1, configure(FIG1, "quick", out=str(checkout), seeds=seeds), "quick", ["seeds="]
    )
    with pytest.raises(ValueError, match="other settings") if refused else contextlib.nullcontext():
        add(PAPER, record.folder, results(checkout))


def test_a_preset_that_has_changed_since_its_record_is_refused(checkout, capsys):
    quick = dataclasses.replace(FIG1.presets["quick"], overrides={"num_steps": 50})
    figure = dataclasses.replace(FIG1, presets=dict(FIG1.presets) | {"quick": quick})
    paper = dataclasses.replace(PAPER, figures=(figure, *PAPER.figures[1:]))
    code, said = check(checkout, capsys, paper)
    assert code == 1
    assert "fig1-quick was made with other settings than its preset's (num_steps=100)." in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda body: body["header"].update(figure="fig2"),
            "fig1-quick.json is a record of toy_paper fig2-quick",
        ),
        (lambda body: body["header"].update(preset="paper"), "is a record of toy_paper fig1-paper"),
        (lambda body: body["header"].update(package="other"), "is a record of other fig1-quick"),
        (
            lambda body: body.update(measurements={"decay": "good"}),
            "fig1-quick.json holds no readable record",
        ),
    ],
)
def test_a_record_under_a_false_name_is_refused(checkout, change, message):
    path = results(checkout) / "fig1-quick.json"
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))
    with pytest.raises(ValueError, match=message):
        report_command(PAPER, ["--check"], checkout)
    path.write_text(path.read_text()[:300])
    with pytest.raises(ValueError, match=r"fig1-quick\.json is damaged"):
        report_command(PAPER, ["--check"], checkout)


def test_a_default_figure_without_a_record_is_refused(checkout, capsys):
    for path in results(checkout).glob("fig1-*"):
        path.unlink()
    code, said = check(checkout, capsys)
    assert (code, "fig1 has no record, though `run all` makes one" in said) == (1, True)


def test_the_answer_key_is_enough_to_score_from(checkout):
    key = json.loads((results(checkout) / "answers.json").read_text())
    answers = {(answer["record"], answer["claim"]): answer for answer in key["answers"]}
    rate = answers["fig1-quick.json", "fig1.rate"]
    low, high = rate["accepted"]
    assert low <= rate["interval"][0] <= rate["ours"] <= rate["interval"][1] <= high
    assert (rate["verdict"], rate["kind"], rate["scale"]) == ("holds", "number", "scaled")
    assert rate["control"]["rejected"]
    assert rate["command"] == "gdyn-toy-paper run fig1 preset=quick"
    assert rate["cost"]["seconds"] > 0
    arrays = read_arrays(results(checkout) / "fig1-quick.npz")
    assert rate["arrays_sha256"] == hash_arrays(arrays)
    for name, digest in key["files"].items():
        assert digest == hashlib.sha256((results(checkout) / name).read_bytes()).hexdigest()
    assert {"fig1-quick.json", "fig1-quick.npz", "fig1-quick.png", "fig1-quick.svg"} <= key["files"].keys()


def test_a_claim_that_no_record_measures_is_in_the_key(checkout):
    band = PAPER.claims[2].accept
    extra = Claim("fig2.x", "s", "Sec. 1", "m", band, "b", no_control="none")
    report_command(dataclasses.replace(PAPER, claims=(*PAPER.claims, extra)), [], checkout)
    key = json.loads((results(checkout) / "answers.json").read_text())
    assert key["not_run"] == {"fig2.x": {"question": "s", "kind": "statement", "verdict": "not run"}}


def test_numbers_of_another_run_are_not_added(checkout):
    before = {path: path.read_bytes() for path in results(checkout).iterdir()}
    quick, paper = (
        execute(PAPER, FIG1, configure(FIG1, preset, out=str(checkout / "runs")), preset).folder
        for preset in ("quick", "paper")
    )
    (quick / "arrays.npz").write_bytes((paper / "arrays.npz").read_bytes())
    with pytest.raises(ValueError, match=r"arrays\.npz is not that of its record; delete it"):
        add(PAPER, quick, results(checkout))
    assert {path: path.read_bytes() for path in results(checkout).iterdir()} == before


def test_nothing_to_add_is_no_order_to_rewrite(checkout):
    with pytest.raises(ValueError, match=r"report takes nothing, --check, or --add RUN_FOLDER"):
        report_command(PAPER, ["--add"], checkout)
