import json
import os

import numpy as np
import pytest

from eigengame.paper import PAPER
from eigengame.paper.cli import COMMANDS
from eigengame.paper.commands import EmbedConfig, EvalConfig, FitConfig, embed, evaluate, fit
from eigengame.paper.synthetic import block_graph
from gdyn_reproduce.cli import dispatch


@pytest.fixture
def file(tmp_path, rng):
    X = rng.standard_normal((600, 6)).astype(np.float32) * [6, 4, 2.5, 1, 1, 1] + 3
    np.save(tmp_path / "x.npy", X.astype(np.float32))
    return tmp_path / "x.npy"


def options(file, folder, **changes):
    return FitConfig(
        dataset=str(file),
        num_components=2,
        batch_size=64,
        num_epochs=3,
        checkpoint_every=5,
        out=str(folder),
        **changes,
    )


def test_fit_then_eval(file, tmp_path, capsys):
    fit(options(file, tmp_path / "out"))
    evaluate(EvalConfig(components=str(tmp_path / "out" / "components.npz"), dataset=str(file)))
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["streak"] == 2
    assert report["captured_value_ratio"] == pytest.approx(1, abs=1e-4)
    assert max(report["angles"]) < 0.02


def test_as_typed(file, monkeypatch, capsys):
    """The lines of the README, in the folder of the data."""
    monkeypatch.chdir(file.parent)
    line = "fit x.npy num_components=2 batch_size=64 num_epochs=3 out=folder"
    for words in (
        line,
        line,
        "eval folder/components.npz dataset=x.npy",
    ):  # the second fit has nothing left to do
        assert dispatch(PAPER, COMMANDS, words.split()) == 0
    first, second, report = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == second
    assert report["streak"] == 2
    assert dispatch(PAPER, COMMANDS, ["fit", "nothing.npy", "num_components=2"]) == 2
    assert "No data file 'nothing.npy'" in capsys.readouterr().err


def test_an_interrupted_fit_ends_in_the_same_bits(file, tmp_path, monkeypatch):
    fit(options(file, tmp_path / "whole"))
    import eigengame.paper.commands as commands

    calls = []

    def interrupt(*arguments, **keywords):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        print(*arguments, **keywords)

    monkeypatch.setattr(commands, "print", interrupt, raising=False)
    with pytest.raises(KeyboardInterrupt):
        fit(options(file, tmp_path / "cut"))
    monkeypatch.delattr(commands, "print", raising=False)
    fit(options(file, tmp_path / "cut"))
    with (
        np.load(tmp_path / "whole" / "components.npz") as whole,
        np.load(tmp_path / "cut" / "components.npz") as cut,
    ):
        for name in whole.files:
            np.testing.assert_array_equal(whole[name], cut[name])


def test_a_checkpoint_of_another_configuration_is_refused(file, tmp_path):
    fit(options(file, tmp_path / "out"))
    refusal = pytest.raises(ValueError, match=r"belongs to other settings or other data. Pass another out=")
    with refusal:
        fit(options(file, tmp_path / "out", momentum=0.5))
    fit(options(file, tmp_path / "out", momentum=0.5, overwrite=True))
    rows = np.load(file)
    rows[300] += 1  # the same name and shape
    np.save(file, rows)
    with refusal:
        fit(options(file, tmp_path / "out", momentum=0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda path: os.truncate(path, 2000),
            r"changed while it was read \(14528 bytes before, 2000",
        ),
        (lambda path: path.unlink(), r"x\.npy was removed while it was read"),
        (
            lambda path: np.save(path, np.ones((600, 6), np.float32)),
            r"changed while it was read\. Put",
        ),
    ],
)
def test_a_file_that_changes_while_it_is_read_ends_the_fit_and_the_rest_is_kept(
    file, tmp_path, monkeypatch, change, message
):
    import eigengame.paper.commands as commands

    fit(options(file, tmp_path / "whole"))
    before = file.read_bytes()
    monkeypatch.setattr(commands, "print", lambda *_, **__: change(file), raising=False)
    with pytest.raises(ValueError, match=message):
        fit(options(file, tmp_path / "cut"))
    monkeypatch.delattr(commands, "print", raising=False)
    file.write_bytes(before)
    fit(options(file, tmp_path / "cut"))
    with (
        np.load(tmp_path / "whole" / "components.npz") as whole,
        np.load(tmp_path / "cut" / "components.npz") as cut,
    ):
        assert all(np.array_equal(whole[name], cut[name]) for name in whole.files)


def test_embed_from_text_and_npy(tmp_path, rng, capsys):
    edges, labels = block_graph(rng, blocks=3, nodes=12)
    np.save(tmp_path / "e.npy", edges)
    np.savetxt(tmp_path / "e.txt", edges, fmt="%d", header="edges")
    for name in ("e.npy", "e.txt"):
        embed(
            EmbedConfig(
                edges=str(tmp_path / name), num_components=3, num_steps=300, out=str(tmp_path / "v.npy")
            )
        )
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["nodes"] == len(labels)
    assert np.load(tmp_path / "v.npy").shape == (36, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: fit(FitConfig(dataset="")), FileNotFoundError, "No data file ''"),
        (lambda p: fit(FitConfig(dataset=str(p / "a.txt"))), ValueError, "neither .npy nor .npz"),
        (lambda p: fit(FitConfig(dataset=str(p / "two.npz"))), ValueError, "save the samples alone"),
        (lambda p: fit(FitConfig(dataset=str(p / "flat.npy"))), ValueError, "samples must be on rows"),
        (lambda p: evaluate(EvalConfig()), FileNotFoundError, "pass components.npz"),
        (lambda p: evaluate(EvalConfig(components=str(p / "two.npz"))), ValueError, "no array 'components'"),
        (lambda p: embed(EmbedConfig()), FileNotFoundError, "No edge file ''"),
        (lambda p: embed(EmbedConfig(edges=str(p / "a.txt"))), ValueError, "write two integers per line"),
        (lambda p: FitConfig(num_components=0), ValueError, "num_components=0 must be positive"),
        (lambda p: FitConfig(algorithm="beta"), ValueError, "allowed are mu, alpha, gha, oja"),
    ],
)
def test_bad_input(tmp_path, call, error, message):
    (tmp_path / "a.txt").write_text("one two\n")
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    np.save(tmp_path / "flat.npy", np.zeros(3))
    with pytest.raises(error, match=message):
        call(tmp_path)


@pytest.mark.parametrize(
    "key", ["cca dataset=mnist", "images dataset=mnist", "passes datasets=[digits,mnist]"]
)
def test_data_are_looked_for_where_the_key_says(key, tmp_path, capsys):
    options = ["preset=smoke", f"data_root={tmp_path}", "download=false", f"out={tmp_path}"]
    assert dispatch(PAPER, COMMANDS, ["run", *key.split(), *options]) == 2
    assert f"mnist not found in {tmp_path}" in capsys.readouterr().err
