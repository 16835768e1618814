import builtins
import itertools

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from gdyn_reproduce.plotting import COLOURS, band, house_style, label_curves, new_figure, plain, save_figure


def drawn():
    with house_style():
        figure, axes = new_figure()
        curves = np.array([[0.0, 1.0, 2.0], [0.0, 3.0, 4.0]])
        band(axes, np.arange(3), curves, "two seeds", COLOURS[0])
        axes.legend()
    return figure, axes


def test_the_same_picture_gives_the_same_bytes(tmp_path):
    for stem in ("first", "second"):
        with house_style():
            save_figure(drawn()[0], tmp_path / stem)
    for suffix in ("png", "svg"):
        first, second = (tmp_path / f"{stem}.{suffix}" for stem in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()
    assert not list(tmp_path.glob(".*"))  # nothing is left of the atomic writes


def test_a_palette_leaves_the_colours_as_they_were(tmp_path):
    with house_style():
        figure, axes = new_figure()
        x = np.linspace(0, 20, 400)
        for index, colour in enumerate(COLOURS):  # thin lines: few pixels to each hue, many blurred edges
            axes.plot(x, (1 + index) * np.sin(x + index), color=colour, linewidth=0.5)
        axes.fill_between(x, -3, 3, alpha=0.2)
        save_figure(figure, tmp_path / "small")
        figure.savefig(tmp_path / "full.png")
    with Image.open(tmp_path / "small.png") as small, Image.open(tmp_path / "full.png") as full:
        assert small.mode == "P"
        difference = np.abs(np.asarray(small.convert("RGB"), int) - np.asarray(full.convert("RGB"), int))
    assert difference.mean() < 0.5
    assert difference.max() <= 32  # vermilion and orange are 53 apart
    assert (tmp_path / "small.png").stat().st_size < (tmp_path / "full.png").stat().st_size


def test_names_stand_at_the_right_ends_of_their_curves_and_apart():
    with house_style():
        _, axes = new_figure()
        axes.plot([2, 1, 0], [4.0, 1.0, 0.0], label="falls to the left")  # drawn from right to left
        axes.plot([0, 2], [0.0, 3.99], label="nearly as high")
        axes.plot([0, 2], [0.0, 0.0], label="flat")
        axes.set_ylim(0, 5)
        label_curves(axes)
    places = {text.get_text(): text.xy[1] for text in axes.texts}
    assert places["flat"] < 0.05
    high, low = places["falls to the left"], places["nearly as high"]
    assert 0.03 < high - low < 0.1
    assert (high + low) / 2 == pytest.approx((4 + 3.99) / 2 / 5)


def test_text_of_the_vector_picture_stays_text(tmp_path):
    with house_style():
        save_figure(drawn()[0], tmp_path / "figure")
    assert "two seeds" in (tmp_path / "figure.svg").read_text()


def test_a_band_is_the_mean_within_the_range():
    _, axes = drawn()
    (line,) = axes.lines
    assert line.get_ydata() == pytest.approx([0, 2, 3])
    (shade,) = axes.collections
    edges = shade.get_paths()[0].vertices
    at_the_end = edges[edges[:, 0] == 2][:, 1]
    assert (at_the_end.min(), at_the_end.max()) == (2, 4)


def test_the_style_is_left_as_it_was():
    before = dict(mpl.rcParams)
    with house_style():
        assert mpl.rcParams["svg.hashsalt"] == "gdyn"
    assert dict(mpl.rcParams) == before


def test_names_stand_at_the_ends_of_their_curves_and_do_not_overlap():
    with house_style():
        figure, axes = new_figure()
        for name, level in (("low", 0.0), ("close", 0.001), ("high", 1.0)):
            axes.plot([0, 1, 2], [0.5, level, level], label=name)
        axes.plot([0, 1], [0, 0])  # without a name
        label_curves(axes)
        figure.draw_without_rendering()
    names = {text.get_text(): text for text in axes.texts}
    assert list(names) == ["low", "close", "high"]
    boxes = [names[name].get_window_extent() for name in ("low", "close", "high")]
    assert boxes[0].y1 <= boxes[1].y0
    assert boxes[1].y1 < boxes[2].y0
    end_of_high = axes.transData.transform((2, 1.0))[1]
    assert (boxes[2].y0 + boxes[2].y1) / 2 == pytest.approx(end_of_high, abs=2)
    assert boxes[0].x0 >= axes.get_window_extent().x1


def test_logarithmic_ticks_are_plain_numbers(tmp_path):
    with house_style():
        figure, axes = new_figure()
        axes.loglog([1, 1e7], [12, 40])
        save_figure(figure, tmp_path / "log")
    labels = [text.get_text() for text in axes.get_yticklabels(which="both") if text.get_text()]
    assert "20" in labels
    assert not any("times" in label for label in labels)
    powers = [text.get_text() for text in axes.get_xticklabels() if text.get_text()]
    assert "100" in powers
    assert any("10^{7}" in label for label in powers)


@pytest.mark.parametrize(
    ("ends", "labels"),
    [
        ((500, 5500), ["500", "1000", "2000", "5000"]),
        ((21, 90), ["30", "50"]),
        ((30, 44), ["30", "40"]),
        ((700, 60000), ["1000", "3000", "10000", "30000"]),
    ],
)
def test_labels_between_powers_of_ten_do_not_run_together(tmp_path, ends, labels):
    with house_style():
        figure, axes = new_figure(1, 2, figsize=(9.2, 3.3))
        axes[0].loglog(ends, [1, 2])
        axes[0].set_xlim(*ends)
        save_figure(figure, tmp_path / "log")
    shown = [text for text in axes[0].get_xticklabels(which="both") if text.get_text()]
    shown.sort(key=lambda text: text.get_position()[0])
    shown = [text for text in shown if ends[0] <= text.get_position()[0] <= ends[1]]
    assert [text.get_text() for text in shown] == labels
    boxes = [text.get_window_extent() for text in shown]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_numbers_in_pictures_are_plain_and_not_rounded_to_another_tick(tmp_path):
    numbers = (0.025, 51984, 0, -0.01, 1e5, 2.1e8, -2e-7)
    spelled = (
        "0.025",
        "51980",
        "0",
        "\N{MINUS SIGN}0.01",
        "$10^{5}$",
        "$2.1\\cdot10^{8}$",
        "$-2\\cdot10^{-7}$",
    )
    assert tuple(map(plain, numbers)) == spelled
    with house_style():
        figure, axes = new_figure()
        axes.plot([0, 100], [-0.01, 0.001])
        axes.set(xscale="symlog", yscale="log", ylim=(1e-3, 1))
        save_figure(figure, tmp_path / "figure")
    assert {"100", "0.001"} <= {
        tick.get_text() for tick in [*axes.get_xticklabels(), *axes.get_yticklabels()]
    }


def test_a_picture_does_not_follow_the_settings_of_a_user(tmp_path):
    save_figure(drawn()[0], tmp_path / "plain")
    dark = {
        "figure.facecolor": "black",
        "axes.labelcolor": "white",
        "savefig.bbox": "tight",
        "savefig.dpi": 30,
    }
    with mpl.rc_context(dark):
        with house_style():
            save_figure(drawn()[0], tmp_path / "dark")
        assert mpl.rcParams["savefig.dpi"] == 30
    with house_style():
        save_figure(drawn()[0], tmp_path / "plain")
    assert (tmp_path / "dark.png").read_bytes() == (tmp_path / "plain.png").read_bytes()


def test_a_misspelt_backend_is_told_in_one_line(monkeypatch):
    def refuse(name, *arguments, **options):
        if name == "matplotlib":
            raise ValueError("Key backend: 'nonsense' is not a valid value for backend")
        return real(name, *arguments, **options)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ValueError, match=r"^matplotlib does not start: Key backend"), house_style():
        pass
