"""PNG files: the colours of the values are in the pixels, and no text of the caller is read as mathematics."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.image import imread

from jaxcore.reporting import TokenHeatmap
from jaxcore.reporting.figures import write_png
from jaxcore.reporting.palette import PALETTE
from jaxcore.reporting.token_maps import AgreementMatrix, LayerTokenMap, blended, side_by_side


def count(path, colour: str) -> int:
    """Pixels of exactly this colour."""
    pixels = np.round(imread(path)[..., :3] * 255).astype(int)
    return int((pixels == list(bytes.fromhex(colour[1:]))).all(-1).sum())


POSITIVE, NEGATIVE = PALETTE["positive"][0], PALETTE["negative"][0]


def test_heatmap_pixels_have_the_tokens_colours(tmp_path):
    file = tmp_path / "new" / "map.png"
    write_png(file, TokenHeatmap(["wide", "##st", "x", "y"], [1, 0.5, -1, 0], marked=[0, 0, 0, 1]))
    full, half, against = count(file, POSITIVE), count(file, blended("positive", 0.5)), count(file, NEGATIVE)
    assert full > half > against > 50  # as wide as "wide", "st" and "x"
    write_png(file, TokenHeatmap(["wide", "x"], [0, 0]))
    assert count(file, POSITIVE) == count(file, NEGATIVE) == 0
    assert list(file.parent.iterdir()) == [file]


def test_long_texts_wrap(tmp_path):
    for length in (10, 300):
        write_png(tmp_path / f"{length}.png", TokenHeatmap(["word"] * length, np.ones(length)))
    short, long = (imread(tmp_path / f"{length}.png").shape for length in (10, 300))
    assert long[0] > 5 * short[0] and long[1] < 2 * short[1]


@pytest.mark.parametrize("text", ("$\\frac{", "$x$", "\x1b[0m", "a\nb", "_^{}\\", "字"))
def test_any_text_can_be_drawn(text, tmp_path, recwarn):
    with mpl.rc_context({"text.usetex": True}):  # a user's own setting
        write_png(tmp_path / "a.png", side_by_side([text, "b"], {text: [1, -1]}, caption=text))
        write_png(tmp_path / "b.png", LayerTokenMap([text, "b"], [[1, -1]], [text], caption=text))
        write_png(tmp_path / "c.png", AgreementMatrix([text, "b"], np.eye(2), caption=text))
        assert mpl.rcParams["text.usetex"]
    assert all(count(tmp_path / f"{name}.png", POSITIVE) > 50 for name in "abc")


def test_grids_have_a_cell_for_every_value(tmp_path):
    file = tmp_path / "layers.png"
    values = np.zeros((3, 8))
    write_png(file, LayerTokenMap(list("abcdefgh"), values))
    empty = count(file, POSITIVE)
    values[0, 0], values[2, 7], values[1, 3] = 1, -1, np.nan
    write_png(file, LayerTokenMap(list("abcdefgh"), values))
    cell = 0.42 * 0.32 * 150**2
    assert abs(count(file, POSITIVE) - empty - cell) < 0.15 * cell and count(file, NEGATIVE) > 0.85 * cell
    assert count(file, PALETTE["grid"][0]) > 0.85 * cell


def test_agreement_is_written_into_its_cells(tmp_path):
    mean = np.array([[1, 0.5], [0.5, 1]])
    write_png(tmp_path / "a.png", AgreementMatrix(["a", "b"], mean))
    write_png(tmp_path / "b.png", AgreementMatrix(["a", "b"], mean, np.full((2, 2), 0.25)))
    plain, deviating = (imread(tmp_path / f"{name}.png") for name in "ab")
    assert plain.shape == deviating.shape and (plain != deviating).any(-1).sum() > 100


def test_failure_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "a.png"
    file.write_bytes(b"old")

    def fail(source, target):
        assert source.stat().st_size > 100 and target == file
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", fail)
        with pytest.raises(OSError, match="disk full"):
            write_png(file, TokenHeatmap(["a"], [1]))
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]
    with pytest.raises(ValueError, match="dpi"):
        write_png(file, TokenHeatmap(["a"], [1]), dpi=0)
