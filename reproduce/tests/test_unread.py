"""Options that nothing reads are refused, and found where nobody has declared them."""

import dataclasses

import pytest
from toy_paper import decay
from toy_paper.paper import PAPER

from gdyn_reproduce.cli import dispatch
from gdyn_reproduce.data import load, names
from gdyn_reproduce.data.catalogue import ON_DISK
from gdyn_reproduce.runs import configure, execute
from gdyn_reproduce.testing import check_unread, every_option_counts
from gdyn_reproduce.unread import Unread, on_disk

FIG1 = PAPER.figure("fig1")
RATES = Unread(("rates",), "unless delay_s=0", lambda config: not config.delay_s)
DECLARED = dataclasses.replace(FIG1, unread=(RATES, Unread(("fail",), "here")))


def paper(figure):
    return dataclasses.replace(PAPER, figures=(figure, *PAPER.figures[1:]))


@pytest.mark.parametrize("more", [(), ("dry_run=true",)])
def test_an_option_without_effect_is_refused_in_one_line_before_anything_is_made(more, tmp_path, capsys):
    options = ("preset=smoke", f"out={tmp_path}", *more)

    def run(*changes):
        return dispatch(paper(DECLARED), (), ["run", "fig1", *options, *changes])

    assert run("fail=input") == 2
    assert capsys.readouterr() == ("", "gdyn-toy-paper: fail=input has no effect here; leave it out.\n")
    assert run("delay_s=0.001", "rates=[2.0]") == 2
    assert capsys.readouterr().err.endswith("rates=[2.0] has no effect unless delay_s=0; leave it out.\n")
    assert list(tmp_path.iterdir()) == []
    assert run("delay_s=0.001", "rates=[0.5,1.0]") == run("rates=[2.0]") == run() == 0


def test_code_that_runs_a_figure_is_told_too(tmp_path):
    config = configure(DECLARED, "smoke", out=str(tmp_path), fail="input")
    with pytest.raises(ValueError, match="fail=input has no effect here"):
        execute(paper(DECLARED), DECLARED, config, "smoke")


def smoke(figure, out):
    return execute(paper(figure), figure, configure(figure, "smoke", out=str(out)), "smoke")


def blind(config, run, compute=decay.compute):
    """Compute with an option that is replaced and one that is only copied."""
    return compute(dataclasses.replace(config, rates=[1.0], fail=dataclasses.asdict(config)["fail"]), run)


def test_an_option_that_is_only_copied_or_replaced_must_be_declared(tmp_path, monkeypatch):
    monkeypatch.setattr(decay, "compute", blind)
    with pytest.raises(AssertionError, match="fig1 never reads fail, rates;"), every_option_counts(FIG1):
        smoke(FIG1, tmp_path)
    declared = dataclasses.replace(FIG1, unread=(Unread(("fail", "rates"), "here"),))
    with every_option_counts(declared):
        record = smoke(declared, tmp_path / "declared")
    check_unread(declared, record, tmp_path / "unread")


def test_every_option_of_an_honest_figure_counts(tmp_path):
    with every_option_counts(FIG1):
        smoke(FIG1, tmp_path)


def test_an_option_that_counts_may_not_be_declared(tmp_path):
    wrong = dataclasses.replace(FIG1, unread=(Unread(("num_steps",), "here"),))
    with pytest.raises(AssertionError, match="num_steps"):
        check_unread(wrong, smoke(wrong, tmp_path), tmp_path / "unread")


def test_data_sets_that_are_always_there_need_no_folder(tmp_path):
    for name in names():
        assert on_disk(name) == (name in ON_DISK)
        if not on_disk(name):
            load(name, "test", tmp_path / "nowhere", download=True)
