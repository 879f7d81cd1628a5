"""Attributions of an image laid over it as colour, for one method or several side by side.

An `ImageOverlay` is data: a block of a report (`jaxcore.reporting.html`) and what `jaxcore.reporting.figures` draws as
PNG. The image is shown grey and faded, so that all colour is attribution; the first picture is the image itself.
"""

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import ArrayLike

from jaxcore.reporting.palette import PALETTE
from jaxcore.reporting.tables import format_number

Kind = Literal["signed", "magnitude"]
Pixels = UInt8[np.ndarray, "height width 3"]

_NEGATIVE, _POSITIVE = PALETTE["series-1"][0], PALETTE["series-2"][0]
"""Blue and orange, dark enough for the faded image; the same in light and in dark, as the image is."""
_FADED_BLACK = 0.4
_STRONGEST = 0.92
"""The share of the colour in a pixel at the limit: the image stays visible through it."""
_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


@dataclass(frozen=True)
class ImageOverlay:
    """One image as several attribution methods explain it.

    Each method has its own colour scale, as methods have different units: compare where the colour is, not how strong.
    A map coarser than the image (Grad-CAM's) is enlarged bilinearly, as if its values stood in the middle of the
    rectangles that they cover. Channels of a map are summed, of magnitudes if magnitudes are shown.

    Args:
        image: [height, width], [height, width, 1] or [height, width, 3]; uint8, or floats in [0, 1].
        attributions: name of a method -> [h, w] or [h, w, channels] with h <= height and w <= width, in any unit.
        kind: "signed" shows orange for positive and blue for negative values, neither at 0; "magnitude" shows absolute
            values in orange.
        percentile: the percentile of the magnitudes that has full colour, in (0, 100]; what lies above saturates, so
            that a few extreme pixels do not hide all others. If it is 0, their maximum.
        limit: instead, the value of full colour for all methods, > 0: they can then be compared by colour.
        caption: what is shown.

    Raises:
        ValueError: an image of another shape, dtype or range; no methods; maps of another shape, larger than the image,
            with other channels than its own, or not finite; a percentile or limit out of range.
    """

    image: ArrayLike
    attributions: Mapping[str, ArrayLike]
    kind: Kind = "signed"
    percentile: float = 99.0
    limit: float | None = None
    caption: str = ""

    def __post_init__(self) -> None:
        image = _unit_image(self.image)
        if not isinstance(self.attributions, Mapping) or not self.attributions:
            raise ValueError("attributions must map the name of at least one method to its map")
        for name, values in self.attributions.items():
            _check_map(name, np.asarray(values), image)
        if self.kind not in ("signed", "magnitude"):
            raise ValueError(f"kind must be signed or magnitude: got {self.kind!r}")
        if not 0 < self.percentile <= 100:
            raise ValueError(f"percentile must be in (0, 100]: got {self.percentile}")
        if self.limit is not None and not (math.isfinite(self.limit) and self.limit > 0):
            raise ValueError(f"limit must be a positive finite number or None: got {self.limit}")


@dataclass(frozen=True)
class Picture:
    """One picture ready to draw: the image itself (no ends), or a method's colours over it."""

    name: str
    pixels: Pixels
    ends: tuple[str, str] | None = None
    """What the two ends of the colour scale stand for."""
    colours: tuple[str, ...] = ()
    """The stops of the colour scale, "#rrggbb"; white stands for 0."""

    @property
    def data_uri(self) -> str:
        """The pixels as a PNG inside a URI, for ``<img src>``."""
        from matplotlib.image import imsave  # it takes half a second to import

        stream = io.BytesIO()
        unsigned: dict[str, Any] = {"Software": None}  # the same bytes whatever the version
        imsave(stream, self.pixels, format="png", metadata=unsigned)
        return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()

    @property
    def is_small(self) -> bool:
        """Whether its pixels are to be shown as squares when it is enlarged."""
        return max(self.pixels.shape[:2]) <= 96


def pictures(overlay: ImageOverlay) -> list[Picture]:
    """The image, and the image under each method's colours."""
    image = _unit_image(overlay.image)
    faded = _FADED_BLACK + (1 - _FADED_BLACK) * (image @ np.asarray(_LUMA))
    shown = [Picture("image", _as_pixels(image))]
    for name, values in overlay.attributions.items():
        single = pixel_values(np.asarray(values, np.float64), faded.shape, kind=overlay.kind)
        limit = _limit(single, overlay)
        ends = _ends(limit, float(np.abs(single).max()), overlay.kind)
        stops = ("#ffffff", _POSITIVE) if overlay.kind == "magnitude" else (_NEGATIVE, "#ffffff", _POSITIVE)
        shown.append(Picture(str(name), _coloured(faded, single / limit), ends, stops))
    return shown


def pixel_values(
    attributions: Float[np.ndarray, "h w *channels"], shape: tuple[int, ...], *, kind: Kind = "signed"
) -> Float[np.ndarray, "height width"]:
    """One value per pixel: the sum over channels (of magnitudes for that kind), enlarged bilinearly to `shape`.

    The value of a pixel is interpolated between the middles of the coarse rectangles around it; beyond the outermost
    middles it is theirs.
    """
    values = np.abs(attributions) if kind == "magnitude" else attributions
    if values.ndim == 3:
        values = values.sum(axis=-1)
    down, across = (_interpolation(*sizes) for sizes in zip(values.shape, shape, strict=True))
    return down @ values @ across.T


def _interpolation(coarse: int, fine: int) -> np.ndarray:
    """[fine, coarse]: the weight of each coarse value in each fine one; the identity where both are equal."""
    places = (np.arange(fine) + 0.5) * coarse / fine - 0.5
    return np.stack([np.interp(places, np.arange(coarse), row) for row in np.eye(coarse)], axis=1)


def _limit(values: np.ndarray, overlay: ImageOverlay) -> float:
    """The value of full colour; 1 for a map of zeros, which has no colour."""
    magnitudes = np.abs(values)
    robust = float(np.percentile(magnitudes, overlay.percentile, method="higher"))
    return overlay.limit or robust or float(magnitudes.max()) or 1.0


def _ends(limit: float, largest: float, kind: Kind) -> tuple[str, str]:
    """What stands at both ends of the colour scale."""
    if largest == 0:
        return "0", "0"
    beyond = largest > limit * (1 + 1e-12)
    high = ("≥ " if beyond else "") + format_number(limit, signed=kind == "signed")
    return ("0" if kind == "magnitude" else ("≤ " if beyond else "") + format_number(-limit)), high


def _coloured(faded: np.ndarray, strengths: np.ndarray) -> Pixels:
    """The faded image mixed with the colour of each value's sign, linearly in its magnitude up to 1."""
    colours = [np.frombuffer(bytes.fromhex(colour[1:]), np.uint8) / 255 for colour in (_NEGATIVE, _POSITIVE)]
    share = _STRONGEST * np.minimum(np.abs(strengths), 1)[..., None]
    colour = np.where(strengths[..., None] < 0, *colours)
    return _as_pixels((1 - share) * faded[..., None] + share * colour)


def _as_pixels(values: np.ndarray) -> Pixels:
    return np.round(255 * np.clip(values, 0, 1)).astype(np.uint8)


def _unit_image(image: ArrayLike) -> Float[np.ndarray, "height width 3"]:
    """The image as floats in [0, 1] with three channels."""
    array = np.asarray(image)
    if array.ndim not in (2, 3) or 0 in array.shape or array.shape[2:] not in ((), (1,), (3,)):
        raise ValueError(
            f"an image must be [height, width], [height, width, 1] or [height, width, 3]: got {list(array.shape)}"
        )
    if array.dtype == np.uint8:
        array = array / 255
    elif not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"an image must be uint8, or floats in [0, 1]: got {array.dtype}")
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
        raise ValueError(
            f"a floating-point image must lie in [0, 1]: got values from {array.min():.4g} to {array.max():.4g} "
            "(undo the normalisation that the model's input has gone through)"
        )
    channels = array.reshape(*array.shape[:2], -1).astype(np.float64)
    return np.broadcast_to(channels, (*array.shape[:2], 3)) if channels.shape[-1] == 1 else channels


def _check_map(name: str, values: np.ndarray, image: np.ndarray) -> None:
    height, width = image.shape[:2]
    shape = values.shape
    if len(shape) not in (2, 3) or 0 in shape or shape[2:] not in ((), (1,), (3,)):
        raise ValueError(
            f"attributions {name!r} must be [h, w] or [h, w, channels], channels those of the image: got {list(shape)} "
            "(one image at a time; sum over the channels of an inner layer first)"
        )
    if shape[0] > height or shape[1] > width:
        raise ValueError(f"attributions {name!r} of shape {list(shape)} are larger than the image [{height}, {width}]")
    if not np.issubdtype(values.dtype, np.number) or np.issubdtype(values.dtype, np.complexfloating):
        raise ValueError(f"attributions {name!r} must be real numbers: got {values.dtype}")
    broken = int((~np.isfinite(values)).sum())
    if broken:
        raise ValueError(f"attributions {name!r} are not finite (NaN or infinite) in {broken} of {values.size} places")
