"""Image overlays: colours follow sign and size, coarse maps are enlarged in place, and no text reaches the page raw."""

import base64
import io
import re

import jax
import numpy as np
import pytest
from matplotlib.image import imread

from jaxcore.reporting import ImageOverlay, Report, Section, render_report, write_report
from jaxcore.reporting.figures import png_bytes
from jaxcore.reporting.image_overlays import pictures, pixel_values
from jaxcore.reporting.palette import PALETTE

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (12, 8, 3)).astype(np.uint8)
MAP = RNG.standard_normal((12, 8, 3))


def overlaid(values, image=None, **options) -> np.ndarray:
    """The pixels under one method's colours, as whole numbers that can be subtracted."""
    image = np.full((12, 8), 0.5) if image is None else image
    return pictures(ImageOverlay(image, {"m": values}, **options))[1].pixels.astype(int)


def redness(pixels: np.ndarray) -> np.ndarray:
    """Red minus blue: above 0 in orange, below in blue, 0 in grey."""
    return pixels[..., 0] - pixels[..., 2]


def test_colour_tells_sign_and_grows_with_size():
    values = np.zeros((12, 8))
    values[0, :6] = [1, 0.5, 0.25, -0.25, -0.5, -1]
    colours = redness(overlaid(values, percentile=100))
    assert np.all(colours[1:] == 0) and not colours[0, 6:].any()
    full = colours[0, 0]
    np.testing.assert_allclose(colours[0, :3], full * np.array([1, 0.5, 0.25]), atol=1.5)
    assert colours[0, 5] < 0
    np.testing.assert_allclose(colours[0, 3:6], colours[0, 5] * np.array([0.25, 0.5, 1]), atol=1.5)
    magnitudes = redness(overlaid(values, percentile=100, kind="magnitude"))
    np.testing.assert_array_equal(magnitudes[0, :3], magnitudes[0, 5:2:-1])
    assert magnitudes.max() == full


def test_the_image_shows_through_in_grey_and_faded():
    shown, over = pictures(ImageOverlay(IMAGE, {"m": np.zeros((12, 8))}))
    np.testing.assert_array_equal(shown.pixels, IMAGE)
    assert shown.ends is None and over.ends == ("0", "0")
    assert np.all(over.pixels.max(-1) == over.pixels.min(-1))
    grey = IMAGE @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(over.pixels[..., 0], 255 * 0.4 + 0.6 * grey, atol=1)
    assert np.ptp(overlaid(np.ones((12, 8)), IMAGE).mean(-1)) > 3  # even under full colour


@pytest.mark.parametrize("image", (IMAGE[..., 0], IMAGE[..., :1], IMAGE, IMAGE / 255, (IMAGE / 255).astype(np.float32)))
def test_images_of_every_accepted_kind(image):
    shown = pictures(ImageOverlay(image, {"m": np.ones((12, 8))}))[0].pixels
    expected = np.broadcast_to(IMAGE if image.shape[2:] == (3,) else IMAGE[..., :1], (12, 8, 3))
    np.testing.assert_array_equal(shown, expected)


def test_channels_are_summed_with_their_signs_or_as_magnitudes():
    np.testing.assert_allclose(pixel_values(MAP, (12, 8)), MAP.sum(-1), atol=1e-12)
    np.testing.assert_allclose(pixel_values(MAP, (12, 8), kind="magnitude"), np.abs(MAP).sum(-1), atol=1e-12)


@pytest.mark.parametrize(("coarse", "fine"), [((7, 7), (56, 42)), ((1, 3), (5, 3)), ((2, 5), (7, 11))])
def test_coarse_maps_are_enlarged_bilinearly(coarse, fine):
    values = RNG.standard_normal(coarse)
    with jax.enable_x64(True):
        expected = jax.image.resize(values, fine, "bilinear")
    np.testing.assert_allclose(pixel_values(values, fine), expected, atol=1e-12)


def test_a_coarse_peak_lands_on_its_part_of_the_image():
    values = np.zeros((3, 2))
    values[2, 0] = 1
    colours = redness(overlaid(values))
    assert np.unravel_index(colours.argmax(), colours.shape) >= (8, 0)
    assert colours[8:, :4].mean() > 5 * colours[:8].mean() and not colours[:6].any()


def test_a_few_extreme_pixels_do_not_hide_the_others():
    values = np.full((12, 8), 0.5)
    values[0, 0] = 1e6
    robust, plain = (pictures(ImageOverlay(IMAGE, {"m": values}, percentile=p))[1] for p in (98, 100))
    assert redness(robust.pixels.astype(int))[5].min() > 100 > 5 > redness(plain.pixels.astype(int))[5].max()
    assert robust.ends == ("≤ -0.500", "≥ +0.500") and plain.ends[1].startswith("+")
    sparse = np.zeros((12, 8))
    sparse[3, 3] = -2  # 99 % of the values are 0
    assert redness(overlaid(sparse))[3, 3] < -100
    magnitude = pictures(ImageOverlay(IMAGE, {"m": sparse}, kind="magnitude"))[1]
    assert magnitude.ends == ("0", "2.000") and magnitude.colours[0] == "#ffffff"


def test_each_method_has_its_own_scale_unless_one_is_given():
    maps = {"a": np.ones((12, 8)), "b": 0.1 * np.ones((12, 8))}
    own, shared = (pictures(ImageOverlay(IMAGE, maps, limit=limit))[1:] for limit in (None, 1.0))
    np.testing.assert_array_equal(own[0].pixels, own[1].pixels)
    assert redness(shared[0].pixels.astype(int)).mean() > 5 * redness(shared[1].pixels.astype(int)).mean()


def test_the_page_holds_the_pictures_and_nothing_raw():
    name = "<script>alert(1)</script>"
    overlay = ImageOverlay(IMAGE, {name: MAP, 'x" onload="y': -MAP}, caption="<b>why</b>")
    page = render_report(Report("r", sections=[Section("s", [overlay])]))
    assert name not in page and "<b>why" not in page and 'x" onload="y' not in page
    found = re.findall(r'<img src="data:image/png;base64,([^"]*)"', page)
    assert len(found) == 3
    for encoded, picture in zip(found, pictures(overlay), strict=True):
        pixels = imread(io.BytesIO(base64.b64decode(encoded)))
        np.testing.assert_array_equal(np.round(255 * pixels[..., :3]), picture.pixels)


def test_the_figure_shows_every_method_beside_the_image():
    def drawn(maps, **options):
        return imread(io.BytesIO(png_bytes(ImageOverlay(np.full((12, 8), 0.5), maps, **options))))

    one, two = (drawn({f"$m_{i}": sign * np.ones((12, 8)) for i, sign in enumerate(signs)}) for signs in ([1], [1, -1]))
    assert two.shape[1] > 1.3 * one.shape[1]
    many = drawn({str(i): np.ones((12, 8)) for i in range(4)})  # five pictures: a second row
    assert many.shape[0] > 1.8 * two.shape[0]
    blue, orange = ((two[..., 2] > two[..., 0] + 0.3).sum(), (two[..., 0] > two[..., 2] + 0.3).sum())
    assert blue > 50_000 and orange > 50_000 and (one[..., 2] > one[..., 0] + 0.3).sum() < 10_000


def test_pictures_load_and_fit_the_page(page, tmp_path):
    maps = {f"method {i}": RNG.standard_normal((7, 7)) for i in range(5)}
    write_report(tmp_path / "r.html", Report("r", sections=[Section("s", [ImageOverlay(IMAGE, maps, caption="c")])]))
    for width in (375, 1280):
        page.open(tmp_path / "r.html", width=width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        sizes = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.naturalHeight, i.clientWidth])")
        assert len(sizes) == 6 and all(size[:2] == [8, 12] and size[2] > 150 for size in sizes)
    found = page.evaluate("getComputedStyle(document.querySelectorAll('.picture-colours')[0]).backgroundImage")
    for name in ("series-1", "series-2"):
        assert "rgb({}, {}, {})".format(*bytes.fromhex(PALETTE[name][0][1:])) in found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": np.zeros((12, 8, 4))}, r"\[height, width, 3\]: got \[12, 8, 4\]"),
        ({"image": np.zeros((1, 12, 8, 3))}, r"got \[1, 12, 8, 3\]"),
        ({"image": np.zeros((0, 8))}, r"got \[0, 8\]"),
        ({"image": np.zeros((12, 8), int)}, "uint8, or floats in"),
        ({"image": np.full((12, 8), 1.5)}, r"must lie in \[0, 1\]: got values from 1.5 to 1.5"),
        ({"image": np.full((12, 8), np.nan)}, r"must lie in \[0, 1\]"),
        ({"attributions": {}}, "at least one method"),
        ({"attributions": MAP}, "at least one method"),
        ({"attributions": {"m": MAP.transpose(2, 0, 1)}}, r"'m' must be \[h, w\].*got \[3, 12, 8\]"),
        ({"attributions": {"m": MAP[None]}}, "one image at a time"),
        ({"attributions": {"m": MAP.transpose(1, 0, 2)}}, r"\[8, 12, 3\] are larger than the image \[12, 8\]"),
        ({"attributions": {"m": np.where(MAP > 2, np.nan, MAP)}}, r"'m' are not finite .* of 288 places"),
        ({"attributions": {"m": MAP + 1j}}, "real numbers"),
        ({"kind": "loud"}, "kind must be signed or magnitude: got 'loud'"),
        ({"percentile": 0}, "percentile must be in"),
        ({"limit": 0.0}, "limit must be a positive finite number"),
    ],
)
def test_bad_input_is_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        ImageOverlay(**{"image": IMAGE, "attributions": {"m": MAP}, **options})
