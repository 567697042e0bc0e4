"""Two layers: a background that moves with the stage, and in front of it particles that also move by themselves.

The texture behind a particle moves with the stage while the particle does not. A fit of the particle alone is pulled
along by it, most where the particle is faint. Optical densities of the layers add up, so both are estimated together:
the background from what frames show beside and, since a particle's contrast changes over the edge and the background's
does not, also from what they show behind the particles; the particles from what is left. A frame is then fitted in
two steps, first the stage to the background, then each particle to its template with the background taken off.

Coordinates: a layer is drawn in px at the reference energy. Sample (i, j) of the background lies at stage coordinate
(i, j) - margin; a place u of the reference frame has the stage coordinate u - stage.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy import fft, ndimage
from skimage.feature import match_template

from xreg.kernels.geometry import frame_centre
from xreg.kernels.planes import nearest_valid, sample_plane, spline_coefficients, valid_samples
from xreg.kernels.subpixel import NO_FIT, Template, measure_shift, refine_position

#: Farthest (px) that the stage is looked for beyond where it is expected.
STAGE_REACH = 24
#: Pixels around outlines that are not taken for open background.
_RIM = 3
#: A stage's place is believed below this standard error (px), and if the background shows at least so much of itself.
_MOST_STAGE_SIGMA, _LEAST_GAIN = 0.15, 0.3
#: Pixels of a frame that are enough to fit the stage.
_STAGE_PIXELS = 60_000
#: Pixels around a window, so that its spline is as exact as on the whole frame.
MARGIN = 10
#: Reach (px, standard deviation) of "about" where the strength of the background's structure is judged.
_LOCAL = 8
#: Waves (px) longer than this say nothing about where the stage is.
_LONGEST_WAVE = 16


class Located(NamedTuple):
    """What one frame says about all particles and the stage; NaN where nothing can be said.

    Attributes
    ----------
    position, sigma : ndarray, shape (particles, 2)
        Raw px, and their standard errors.
    contrast, contrast_sigma : ndarray, shape (particles,)
        Of each particle over that of its template.
    stage, stage_sigma : ndarray, shape (2,)
        Shift of the background, px at the reference energy, and its standard errors.
    """

    position: np.ndarray
    sigma: np.ndarray
    contrast: np.ndarray
    contrast_sigma: np.ndarray
    stage: np.ndarray
    stage_sigma: np.ndarray


@dataclass(frozen=True)
class Layers:
    """Pictures of the background and of every particle.

    Attributes
    ----------
    background : ndarray, shape (Y, X), float32
        Optical density; 0 where not known.
    known : ndarray, shape (Y, X), bool
        Where the background was seen.
    margin : int
        Samples by which it is larger than a frame on every side.
    pictures : ndarray, shape (particles, n, n), float32
        Optical density of each particle where its contrast is highest, 0 outside; NaN where it is hardly seen, all NaN
        for one never seen.
    contour : ndarray, shape (particles, n, n), bool
        Outlines.
    """

    background: np.ndarray
    known: np.ndarray
    margin: int
    pictures: np.ndarray
    contour: np.ndarray

    @cached_property
    def templates(self) -> list[Template | None]:
        """What each particle is fitted with; None for one that was never seen."""
        return [Template.of(p, c) if np.isfinite(p[c]).any() else None
                for p, c in zip(self.pictures, self.contour, strict=True)]

    @cached_property
    def sprites(self) -> list["Sprite | None"]:
        """What each particle takes off a frame; None for one that was never seen."""
        return [Sprite.of(t.picture) if t else None for t in self.templates]

    @cached_property
    def background_spline(self) -> np.ndarray:
        """Spline coefficients of the background."""
        return spline_coefficients(self.background)

    @cached_property
    def slope_splines(self) -> list[np.ndarray]:
        """Spline coefficients of the background's slopes along y and x."""
        return [spline_coefficients(p) for p in np.gradient(self.background)]

    @cached_property
    def relief_spline(self) -> np.ndarray:
        """Spline coefficients of how strong the background's structure is about every sample: its local variance."""
        mean, square = (ndimage.gaussian_filter(p, _LOCAL) for p in (self.background, self.background**2))
        return spline_coefficients(np.maximum(square - mean**2, 0))

    @cached_property
    def surely_known(self) -> np.ndarray:
        """Where slopes of the background mean something."""
        return ndimage.binary_erosion(self.known, iterations=4)

    @cached_property
    def rims(self) -> np.ndarray:
        """Outlines with a rim, (particles, n, n) bool."""
        return np.array([ndimage.binary_dilation(c, iterations=_RIM) for c in self.contour]).reshape(self.contour.shape)

    @property
    def half(self) -> int:
        """Pictures reach from -half to +half."""
        return self.contour.shape[-1] // 2


@dataclass(frozen=True)
class Sprite:
    """A picture with nothing around it, to be drawn at any place.

    Attributes
    ----------
    spline : ndarray
        Coefficients of the picture in a frame of zeros.
    half : int
        The picture reaches from -half to half.
    """

    spline: np.ndarray
    half: int

    @classmethod
    def of(cls, picture: np.ndarray) -> "Sprite":
        return cls(spline_coefficients(np.pad(picture, MARGIN)), picture.shape[-1] // 2)

    def draw(self, centre: np.ndarray, step: float, shape: tuple[int, int]) -> np.ndarray:
        """The picture on a grid of samples `step` px apart, with its middle at `centre` (samples)."""
        return sample_plane(self.spline, self.half + MARGIN - np.asarray(centre) * step, step, shape)


# -- one frame ---------------------------------------------------------------------------------------------------------


def locate_in_frame(
    density: np.ndarray, start: np.ndarray, predicted: np.ndarray, stage: np.ndarray, scale: float, layers: Layers,
) -> Located:
    """Fit the stage to the background, then every particle to its template.

    Parameters
    ----------
    density : ndarray, shape (y, x), float32
        Optical density; NaN where invalid.
    start : ndarray, shape (particles, 2)
        Where to look for each particle, raw px; NaN for not at all.
    predicted : ndarray, shape (particles,), bool
        Whether the start is only a guess, so that the particle is first looked for around it.
    stage : ndarray, shape (2,)
        Where the stage is expected, px at the reference energy.
    scale : float
        Pixel size over that of the reference energy.
    layers : Layers
        Of the measurement.
    """
    open_field = np.isfinite(density) & ~paint(density.shape, start, scale, layers.rims)
    stage, stage_sigma, gain = fit_stage(density, open_field, stage, scale, layers)
    if np.isfinite(stage).all():
        density = density - np.float32(gain) * background_at(layers, stage, scale, density.shape)
    place = start.copy()
    fits = [NO_FIT] * len(start)
    patches = [Patch.around(density, place[p], scale, t.half, _search_reach(t))
               if t and np.isfinite(place[p]).all() else None for p, t in enumerate(layers.templates)]
    neighbours = _neighbours(place, scale, layers.templates)
    contrast = np.full(len(start), np.nan)
    for p, patch in enumerate(patches):
        if patch and not predicted[p]:
            contrast[p] = measure_shift(patch.cutter()(place[p]), layers.templates[p], errors=False).contrast
    typical = float(np.nanmedian(contrast)) if np.isfinite(contrast).any() else np.nan
    for sweep in range(2):
        before = place.copy(), np.where(np.isfinite(contrast), contrast, typical)
        for p, patch in enumerate(patches):
            if not patch or (sweep and not neighbours[p]):
                continue
            template = layers.templates[p]
            models = [(layers.sprites[q], before[0][q], before[1][q]) for q in neighbours[p]
                      if np.isfinite(before[0][q]).all() and before[1][q] > 0]
            cut = patch.cutter(models)
            first = place[p] if sweep or not predicted[p] else patch.search(cut, place[p], template)
            fits[p] = refine_position(cut, first, scale, template)
            contrast[p] = fits[p].contrast
            if np.isfinite(fits[p].position).all():
                place[p] = fits[p].position
    position, sigma, contrast, contrast_sigma = (np.array(column) for column in zip(*fits, strict=True)) if fits else (
        np.empty((0, 2)), np.empty((0, 2)), np.empty(0), np.empty(0))
    return Located(position, sigma, contrast, contrast_sigma, stage, stage_sigma)


def _search_reach(template: Template) -> int:
    """How far (px) around a guess a particle is looked for."""
    return int(min(4 + 0.3 * template.half, STAGE_REACH))


@dataclass(frozen=True)
class Patch:
    """Part of a frame around one particle, from which windows are cut."""

    low: np.ndarray
    density: np.ndarray
    scale: float
    half: int
    reach: int

    @classmethod
    def around(cls, density: np.ndarray, centre: np.ndarray, scale: float, half: int, reach: int) -> "Patch | None":
        far = half / scale + reach + MARGIN
        low = np.maximum(np.floor(centre - far).astype(int), 0)
        high = np.minimum(np.ceil(centre + far).astype(int) + 1, density.shape)
        if (high - low < 8).any():
            return None
        return cls(low, density[low[0]:high[0], low[1]:high[1]], scale, half, reach)

    def cutter(self, models: list[tuple] = ()):
        """Function from position (raw px) to window (n, n), with models (sprite, position, contrast) taken off."""
        patch = self.density
        for sprite, position, contrast in models:
            patch = patch - np.float32(contrast) * sprite.draw(position - self.low, self.scale, patch.shape)
        valid = np.isfinite(patch)
        whole = bool(valid.all())
        if not whole:
            patch = np.where(valid, patch, np.float32(0))
            patch[~valid] = patch.ravel()[nearest_valid(valid)]
        return Cutter(spline_coefficients(patch), None if whole else valid, self.low, 1 / self.scale, self.half)

    def search(self, cut: "Cutter", start: np.ndarray, template: Template) -> np.ndarray:
        """Place (raw px) within reach of a guess that looks most like a template."""
        reach = self.reach
        wide = cut.window(start, self.half + reach)
        valid = np.isfinite(wide)
        likeness = match_template(np.where(valid, wide, wide[valid].mean() if valid.any() else 0), template.picture)
        best = np.array(np.unravel_index(np.argmax(likeness), likeness.shape))
        return start + (best - reach) / self.scale


@dataclass(frozen=True)
class Cutter:
    """Windows out of a patch by its spline; `valid` is None where all of the patch is."""

    spline: np.ndarray
    valid: np.ndarray | None
    low: np.ndarray
    step: float
    half: int

    def __call__(self, position: np.ndarray) -> np.ndarray:
        return self.window(position, self.half)

    def window(self, position: np.ndarray, half: int) -> np.ndarray:
        first, shape = position - self.low - half * self.step, (2 * half + 1,) * 2
        window = sample_plane(self.spline, first, self.step, shape)
        last, size = first + 2 * half * self.step, self.spline.shape
        if self.valid is not None or (first < 0).any() or (last > np.array(size) - 1).any():
            valid = np.ones(size, bool) if self.valid is None else self.valid
            window[~valid_samples(valid, first, self.step, shape)] = np.nan
        return window


def _neighbours(place: np.ndarray, scale: float, templates: list[Template | None]) -> list[list[int]]:
    """For each particle the others whose windows its own touches."""
    reach = np.array([t.half / scale if t else np.nan for t in templates])
    near = []
    for p in range(len(place)):
        apart = np.abs(place - place[p]).max(axis=1) < reach + reach[p]
        near.append([int(q) for q in np.flatnonzero(apart) if q != p])
    return near


def paint(shape: tuple[int, int], position: np.ndarray, scale: float, outlines: np.ndarray) -> np.ndarray:
    """Pixels of a frame that outlines (particles, n, n) at given positions (particles, 2) cover, to a pixel."""
    covered = np.zeros(shape, bool)
    half = outlines.shape[-1] // 2
    for centre, outline in zip(position, outlines, strict=True):
        if not np.isfinite(centre).all():
            continue
        far = half / scale
        low = np.maximum(np.ceil(centre - far).astype(int), 0)
        high = np.minimum(np.floor(centre + far).astype(int) + 1, shape)
        if (high > low).all():
            rows, columns = (np.rint((np.arange(a, b) - c) * scale).astype(int) + half
                             for a, b, c in zip(low, high, centre, strict=True))
            covered[low[0]:high[0], low[1]:high[1]] |= outline[rows[:, None], columns]
    return covered


def first_sample(shape: tuple[int, int], stage: np.ndarray, scale: float, margin: int) -> np.ndarray:
    """Background sample at which a frame's pixel (0, 0) lies; a frame's px are `scale` samples apart."""
    return frame_centre(shape) * (1 - scale) - stage + margin


def background_at(layers: Layers, stage: np.ndarray, scale: float, shape: tuple[int, int]) -> np.ndarray:
    """The background as a frame sees it, (y, x) float32; 0 where it is not known."""
    first = first_sample(shape, stage, scale, layers.margin)
    seen = sample_plane(layers.background_spline, first, scale, shape)
    return np.where(valid_samples(layers.known, first, scale, shape), seen, np.float32(0))


def fit_stage(
    density: np.ndarray, open_field: np.ndarray, stage: np.ndarray, scale: float, layers: Layers,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Place of the stage, from the open background of a frame.

    Found first to a pixel or two by correlation, then by linear fits of the background, its slopes, an offset and a
    tilt.

    Parameters
    ----------
    density : ndarray, shape (y, x)
    open_field : ndarray, shape (y, x), bool
        Valid pixels beside all particles.
    stage : ndarray, shape (2,)
        Where to begin, px at the reference energy.
    scale : float
        Pixel size over that of the reference energy.
    layers : Layers
        With a background.

    Returns
    -------
    stage, sigma : ndarray, shape (2,)
        And its standard errors. NaN where the background has too little texture, or too little of it is seen, to tell.
    gain : float
        Strength of the background in this frame over that of the layer.
    """
    unknown = np.full(2, np.nan), np.full(2, np.nan), 0.0
    if not np.isfinite(stage).all() or open_field.sum() < 1000 or not layers.background.any():
        return unknown
    stage = _search_stage(density, open_field, stage, scale, layers)
    whole = density.shape
    stride = max(1, round(np.sqrt(open_field.sum() / _STAGE_PIXELS)))
    density, open_field = density[::stride, ::stride], open_field[::stride, ::stride]
    shape, step = density.shape, scale * stride
    tilt = [np.broadcast_to(t, shape) for t in np.ogrid[-1:1:shape[0] * 1j, -1:1:shape[1] * 1j]]
    begun, found = stage, np.zeros(6)
    first = first_sample(whole, stage, scale, layers.margin)
    used = open_field & valid_samples(layers.surely_known, first, step, shape)
    if used.sum() < 500:
        return unknown
    values, weight, gain = density[used].astype(float), 1.0, 1.0
    columns = np.empty((len(values), 6))
    for step_number in range(6):
        first = first_sample(whole, stage, scale, layers.margin)
        for column, spline in enumerate((layers.background_spline, *layers.slope_splines)):
            columns[:, column] = sample_plane(spline, first, step, shape)[used]
        columns[:, 3:] = np.stack([np.ones(len(values)), *(t[used] for t in tilt)], axis=-1)
        if step_number == 1:
            # Pixels that the first fit cannot explain, such as spikes of the detector, are left out. Where structure is
            # strong, it may be matter that was not detected and moves on its own: area counts, not contrast.
            left = np.abs(values - columns @ found)
            kept = left < 6 * np.median(left)
            used[used] = kept
            values, columns = density[used].astype(float), columns[kept]
            relief = np.maximum(sample_plane(layers.relief_spline, first, step, shape)[used], 0)
            weight = 1 / np.sqrt(1 + gain**2 * relief / (1.4826 * np.median(left)) ** 2)
            values = values * weight
        if step_number:
            columns *= weight[:, None]
        normal = columns.T @ columns
        normal[np.diag_indices(len(normal))] *= 1 + 1e-9
        try:
            inverse = np.linalg.inv(normal)
        except np.linalg.LinAlgError:
            return unknown
        found = inverse @ (columns.T @ values)
        gain = float(found[0])
        if not _LEAST_GAIN < gain < 1 / _LEAST_GAIN:
            return unknown
        shift = np.clip(-found[1:3] / gain, -1.5, 1.5)
        stage = stage + shift
        if np.abs(stage - begun).max() > 4:
            return unknown
        if np.abs(shift).max() < 0.003:
            break
    left = values - columns @ found
    sigma = np.sqrt(np.diag(inverse)[1:3] * (left @ left) / len(values)) / gain
    return (stage, sigma, gain) if (sigma < _MOST_STAGE_SIGMA).all() and np.abs(shift).max() < 0.05 else unknown


def _search_stage(density, open_field, stage, scale, layers) -> np.ndarray:
    """Place of the stage to about a pixel, by correlation at half the resolution."""
    shape = tuple(n // 2 for n in layers.background.shape)
    first = -first_sample(density.shape, stage, scale, layers.margin) / scale
    level = np.float32(np.median(density[open_field]))
    filled = ndimage.uniform_filter(np.where(open_field, density - level, np.float32(0)), 2)
    picture = _nearest(filled, first, 2 / scale, shape)
    ours = _fine(picture, _nearest(open_field, first, 2 / scale, shape))
    every_other = np.s_[: 2 * shape[0]: 2, : 2 * shape[1]: 2]
    theirs = _fine(layers.background[every_other], layers.known[every_other])
    size = [fft.next_fast_len(n + STAGE_REACH, real=True) for n in shape]
    likeness = fft.irfft2(np.conj(fft.rfft2(ours, size)) * fft.rfft2(theirs, size), size)
    reach = STAGE_REACH // 2
    near = np.arange(-reach, reach + 1)
    near_likeness = likeness[near[:, None], near]
    best = np.array(np.unravel_index(np.argmax(near_likeness), near_likeness.shape)) - reach
    return stage - 2.0 * best


def _nearest(picture: np.ndarray, first: np.ndarray, step: float, shape: tuple[int, int]) -> np.ndarray:
    """Samples of a picture at the nearest pixel; 0 off the picture."""
    rows, columns = (np.rint(start + step * np.arange(n)).astype(int) + 1
                     for n, start in zip(shape, first, strict=True))
    framed = np.pad(picture, 1)
    return framed[np.clip(rows, 0, framed.shape[0] - 1)[:, None], np.clip(columns, 0, framed.shape[1] - 1)]


def _fine(picture: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """A picture without its long waves, 0 where invalid."""
    weight = valid.astype(np.float32)
    smooth = [ndimage.gaussian_filter(p, _LONGEST_WAVE / 4, truncate=2.0) for p in (picture * weight, weight)]
    return np.where(valid, picture - smooth[0] / np.maximum(smooth[1], 1e-3), 0).astype(np.float32)
