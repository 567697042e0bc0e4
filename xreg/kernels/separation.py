"""Background and particles told apart, from some frames in which contrasts and places differ.

Positions, stage, particles and background are estimated in turn. What would be slow to settle that way is taken in one
step: a particle that hardly moves against the stage could as well be a little stronger, or lie a little elsewhere
before the edge than behind it, with a ghost of it in the background making up for that. Positions are therefore fitted
with both pictures eliminated, and ghosts are taken out of the background.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy import ndimage
from threadpoolctl import threadpool_limits

from xreg.kernels.geometry import to_reference
from xreg.kernels.ghosts import mean_place, take_out_ghosts, texture_waves
from xreg.kernels.layers import (
    STAGE_REACH,
    Layers,
    background_at,
    first_sample,
    fit_stage,
    locate_in_frame,
    paint,
)
from xreg.kernels.planes import nearest_valid, sample_plane, spline_coefficients, valid_samples
from xreg.kernels.portraits import Portrait
from xreg.kernels.unmixing import unmix
from xreg.kernels.waves import RINGS, WAVE_NUMBERS, filtered, mean_power, wiener_shares

#: Rounds of locating at most, and of separating the layers within each.
ROUNDS, _SEPARATIONS = 10, 2
#: Where particle and background cannot be eliminated, positions are moved so many times as far as a fit says: layers
#: follow slowly, and fits say too little.
_HASTE = 1.4
#: Turns in which particles that touch are fitted: where both may have made a pixel dark, fits follow each other slowly.
_TURNS = 8
#: Frames that must show a particle, and the share of it that all of them must show, for both pictures to be eliminated.
_FEWEST, _LEAST_SEEN = 4, 0.8
#: Pixels by which what all frames show is made smaller, since the taper is soft.
_SOFT = 4
#: A particle that is looked for is found at this many standard errors of its contrast.
_SURE = 5.0
#: Shifts, in px and in standard errors, below which positions have settled.
_SETTLED = 0.02, 0.1


def make_layers(
    frames: np.ndarray, start: np.ndarray, guessed: np.ndarray, doubtful: np.ndarray, stage: np.ndarray,
    scale: np.ndarray, contour: np.ndarray, rounds: int = ROUNDS, told: Callable[[int], None] | None = None,
) -> Layers:
    """Separate some frames into background and particles, and locate both, again and again.

    Parameters
    ----------
    frames : ndarray, shape (n, y, x), float32
        Optical density, frames of high contrast and of low; NaN where invalid.
    start : ndarray, shape (particles, n, 2)
        Centres of mass, raw px; NaN where not in the frame.
    guessed : ndarray, shape (particles, n), bool
        Whether a particle was not detected there, so that it is only known where it should be. Such a place is neither
        fitted nor taken for background: a particle that was missed would leave a ghost there.
    doubtful : ndarray, shape (particles, n), bool
        Whether something was detected that is not the whole of the particle, or more, so that its place is a guess,
        too. It is looked for about there first.
    stage : ndarray, shape (n, 2)
        Where the stage is expected, px at the reference energy.
    scale : ndarray, shape (n,)
        Pixel size of each frame over that of the reference energy.
    contour : ndarray, shape (particles, 2 half + 1, 2 half + 1), bool
        Outline of each particle.
    rounds : int
        How often everything is located anew at most; it ends when positions have settled.
    told : callable, optional
        Called with the number of each round before it begins.
    """
    shape = frames.shape[1:]
    margin = STAGE_REACH + int(np.ceil(np.abs(scale - 1).max(initial=0) * max(shape) / 2))
    size = (shape[0] + 2 * margin, shape[1] + 2 * margin)
    bare = Layers(np.zeros(size, np.float32), np.zeros(size, bool), margin,
                  np.full(contour.shape, np.nan, np.float32), contour)
    if not len(frames):
        return bare
    stage = _chain_stages(frames, start, stage, scale, bare)
    if (doubtful & ~guessed).any():
        start = _look_for_doubtful(frames, start, guessed, doubtful, stage, scale, bare)
    place = np.where(guessed[..., None], np.nan, start)
    separation = _Separation(frames, scale, bare, place, np.where(guessed[..., None], start, np.nan))
    unguessed = np.zeros(len(place), bool)
    part, before = np.ones(len(place)), np.zeros_like(place)
    for number in range(rounds):
        if told:
            told(number)
        layers = separation.separate(place, stage)
        moved, still, sigma = place.copy(), stage.copy(), np.full_like(place, np.nan)
        found = _each(lambda k, layers=layers, place=place, stage=stage: locate_in_frame(
            frames[k], place[:, k], unguessed, stage[k], float(scale[k]), layers), len(frames))
        for k, fits in enumerate(found):
            known = np.isfinite(fits.position).all(-1)
            moved[known, k], sigma[known, k] = fits.position[known], fits.sigma[known]
            if np.isfinite(fits.stage).all():
                still[k] = fits.stage
        shift = moved - place
        settled = separation.settle(place, stage)
        shift = np.where(np.isfinite(settled).any(axis=(1, 2), keepdims=True), settled, _HASTE * shift)
        # Noise may send them to and fro.
        part[np.nansum(shift * before, axis=(1, 2)) < 0] /= 2
        before, shift = shift, part[:, None, None] * shift
        # Fits give shifts, not new origins: particles stay where their centres of mass are on average.
        place = place + (shift - _mean_over_frames(shift))
        stage = still - (still - stage).mean(axis=0)
        left = np.nan_to_num(shift - _mean_over_frames(shift)) / np.fmax(_SETTLED[0], _SETTLED[1] * sigma)
        if (left**2).mean((1, 2)).max(initial=0) < 1:
            break
    return separation.separate(place, stage)


def _look_for_doubtful(frames, start, guessed, doubtful, stage, scale, bare: Layers) -> np.ndarray:
    """Starts (particles, n, 2) with doubtful places put where pictures made without them are found, if they are."""
    aside = guessed | doubtful
    sure, unsure = (np.where(aside[..., None] == hidden, np.nan, start) for hidden in (True, False))
    layers = _Separation(frames, scale, bare, sure, unsure).separate(sure, stage)
    found = _each(lambda k: locate_in_frame(frames[k], start[:, k], aside[:, k], stage[k], float(scale[k]), layers),
                  len(frames))
    better = start.copy()
    for k, fits in enumerate(found):
        there = doubtful[:, k] & np.isfinite(fits.position).all(-1) & (fits.contrast > _SURE * fits.contrast_sigma)
        better[there, k] = fits.position[there]
    return better


def _each(function, n: int) -> list:
    """Results of a function of 0 ... n - 1, worked out by a few threads."""
    # One thread each for the small matrices inside: more only wait for each other.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:
        return list(pool.map(function, range(n)))


def _mean_over_frames(shift: np.ndarray) -> np.ndarray:
    """Mean (particles, 1, 2) of shifts (particles, n, 2) over the frames that have one; 0 where none has."""
    known = np.isfinite(shift)
    return np.where(known, shift, 0).sum(1, keepdims=True) / np.maximum(known.sum(1, keepdims=True), 1)


def _chain_stages(frames, place, stage, scale, bare: Layers) -> np.ndarray:
    """Stage of each frame (n, 2), each fitted to the mean of those before it; the expected place where that fails."""
    total, count = np.zeros(bare.background.shape), np.zeros(bare.background.shape)
    found, offset = stage.copy(), np.zeros(2)
    for k, frame in enumerate(frames):
        open_field = np.isfinite(frame) & ~paint(frame.shape, place[:, k], float(scale[k]), bare.rims)
        found[k] = stage[k] + offset
        if k:
            known = count > 0
            mean = np.where(known, total / np.maximum(count, 1), 0).astype(np.float32)
            so_far = Layers(mean, known, bare.margin, bare.pictures, bare.contour)
            fitted, _, _ = fit_stage(frame, open_field, found[k], float(scale[k]), so_far)
            if np.isfinite(fitted).all():
                found[k], offset = fitted, fitted - stage[k]
        level = np.float32(np.median(frame[open_field]) if open_field.any() else 0)
        picture, seen = _on_stage(np.where(open_field, frame - level, np.float32(0)),
                                  ndimage.binary_erosion(open_field, iterations=2), found[k], float(scale[k]), bare)
        total += np.where(seen, picture, 0)
        count += seen
    return found


def _on_stage(
    frame: np.ndarray, valid: np.ndarray, stage: np.ndarray, scale: float, layers: Layers,
) -> tuple[np.ndarray, np.ndarray]:
    """A frame without NaN sampled on the background's grid, and where it is valid."""
    first = -first_sample(frame.shape, stage, scale, layers.margin) / scale
    shape = layers.background.shape
    return (sample_plane(spline_coefficients(frame), first, 1 / scale, shape),
            valid_samples(valid, first, 1 / scale, shape))


def _taper(contour: np.ndarray, always: np.ndarray) -> np.ndarray | None:
    """Soft weights (h, w) of a particle and its rim where all frames show it; None if that is too little of it."""
    whole = ndimage.binary_dilation(contour, iterations=5)
    part = whole if always[whole].all() else whole & ndimage.binary_erosion(always, iterations=_SOFT)
    if part.sum() < _LEAST_SEEN * whole.sum():
        return None
    return ndimage.gaussian_filter(part.astype(float), 1.5) * always


class _Separation:
    """Alternating least squares of background and particles with given positions."""

    def __init__(self, frames: np.ndarray, scale: np.ndarray, bare: Layers, place: np.ndarray, guess: np.ndarray):
        self.bare, self.scale = bare, [float(s) for s in scale]
        self.valid = [np.isfinite(f) for f in frames]
        self.nearest = _each(lambda k: nearest_valid(self.valid[k]), len(frames))
        # A rim of the frame and of its holes is left out: there the spline has nothing to lean on.
        self.sure = [ndimage.binary_erosion(v, iterations=2) & ~paint(v.shape, guess[:, k], s, bare.rims)
                     for k, (v, s) in enumerate(zip(self.valid, self.scale, strict=True))]
        open_field = [v & ~paint(f.shape, place[:, k], self.scale[k], bare.rims)
                      for k, (f, v) in enumerate(zip(frames, self.valid, strict=True))]
        self.frames = [np.where(v, f - np.float32(np.median(f[o]) if o.any() else 0), np.float32(0))
                       for f, v, o in zip(frames, self.valid, open_field, strict=True)]
        self.background = bare.background, bare.known
        self.kept = np.ones(RINGS, np.float32)
        self.particles = [Portrait(c) for c in bare.contour]
        windows = self._windows(place, [self._spline(k, f) for k, f in enumerate(self.frames)])
        for p, (particle, seen) in enumerate(zip(self.particles, windows, strict=True)):
            # At first what lies under a neighbour's outline is the neighbour's, and what is under both is divided.
            covered = self._covered(p, place)
            theirs = covered & ~particle.contour
            seen[:, theirs] = np.nan
            particle.begin(seen)
            if particle.picture is not None and covered.any():
                ours = ndimage.gaussian_filter((~theirs).astype(np.float32), 1)
                particle.show(particle.picture * ours * np.where(covered, np.float32(0.5), np.float32(1)))
        self.touching = self._find_touching(place)

    def _spline(self, k: int, frame: np.ndarray) -> np.ndarray:
        """Spline coefficients of what is left of frame k."""
        continued = frame.copy()
        continued[~self.valid[k]] = frame.ravel()[self.nearest[k]]
        return spline_coefficients(continued)

    def _covered(self, particle: int, place: np.ndarray) -> np.ndarray:
        """Where in a particle's window its neighbours' outlines lie on average, (h, w) bool."""
        ours = self.particles[particle]
        apart = mean_place((place - place[particle]) * np.array(self.scale)[:, None])
        apart[particle] = np.nan
        return paint((ours.side, ours.side), apart + ours.half, 1.0, self.bare.contour)

    def _windows(self, place: np.ndarray, splines: list[np.ndarray]) -> list[np.ndarray]:
        """Each particle's windows (n, h, w) of frames given by their splines, NaN where it is not seen."""

        def cut(p):
            particle, track = self.particles[p], place[p]
            windows = np.full((len(splines), particle.side, particle.side), np.nan, np.float32)
            for k in np.flatnonzero(np.isfinite(track).all(-1)):
                step = 1 / self.scale[k]
                first = track[k] - particle.half * step
                windows[k] = sample_plane(splines[k], first, step, windows.shape[1:])
                windows[k][~valid_samples(self.valid[k], first, step, windows.shape[1:])] = np.nan
            return windows

        return _each(cut, len(place))

    def separate(self, place: np.ndarray, stage: np.ndarray) -> Layers:
        """Layers that, put where particles (particles, n, 2) and stage (n, 2) are, come nearest to the frames."""
        bare = self.bare
        for again in range(_SEPARATIONS + 1):
            # What was found last, with its ghosts taken out, is the better start.
            if again or not self.background[1].any():
                self.background = self._fit_background(place, stage)
            if again < _SEPARATIONS:
                self.windows = self._fit_particles(place, stage)
                self.taken_off = self.background[0]
        background, known = self.background
        centre = to_reference(place, np.array(self.scale), self.frames[0].shape) - stage + bare.margin
        take_out_ghosts(background, known, self.bare, self.kept, self.particles, centre, self.windows)
        pictures = np.array([p.full_picture() for p in self.particles]).reshape(bare.contour.shape)
        return Layers(background, known, bare.margin, pictures, bare.contour)

    def settle(self, place: np.ndarray, stage: np.ndarray) -> np.ndarray:
        """Shifts (particles, n, 2), px, by which particles are elsewhere than where they were separated last (`unmix`).

        NaN where a particle is not seen; all NaN for one that is seen too rarely, or by less than four fifths.
        """
        shift = np.full(place.shape, np.nan)
        background, known = self.background
        scale = np.array(self.scale)
        centre = to_reference(place, scale, self.frames[0].shape) - stage + self.bare.margin
        open_ = known & ~paint(background.shape, mean_place(centre), 1.0, self.bare.rims)
        if open_.sum() < 1000:
            return shift
        power = mean_power(*texture_waves(background, open_))[0]
        spline = spline_coefficients(self.taken_off)

        def unmixed(p):
            particle = self.particles[p]
            seen = np.flatnonzero(np.isfinite(particle.contrast))
            if len(seen) < _FEWEST:
                return
            taper = _taper(particle.contour, np.isfinite(self.windows[p][seen]).all(axis=0))
            if taper is None:
                return
            behind = [sample_plane(spline, centre[p, k] - particle.half, 1.0, taper.shape) for k in seen]
            moved = unmix(np.nan_to_num(self.windows[p][seen]) + np.array(behind), particle.contrast[seen],
                          -centre[p, seen], taper, lambda q: np.interp(q, WAVE_NUMBERS, power))
            shift[p, seen] = moved / scale[seen, None]

        _each(unmixed, len(place))
        return shift

    def _left(self, k: int, place: np.ndarray) -> np.ndarray:
        """What the particles leave of frame k, (y, x)."""
        left = self.frames[k].copy()
        for particle, centre in zip(self.particles, place[:, k], strict=True):
            if particle.sprite is None or not np.isfinite(particle.contrast[k]):
                continue
            far = particle.half / self.scale[k]
            low = np.maximum(np.floor(centre - far).astype(int), 0)
            high = np.minimum(np.ceil(centre + far).astype(int) + 1, left.shape)
            if (high > low).all():
                drawn = particle.sprite.draw(centre - low, self.scale[k], tuple(high - low))
                left[low[0]:high[0], low[1]:high[1]] -= np.float32(particle.contrast[k]) * drawn
        return left

    def _fit_particles(self, place: np.ndarray, stage: np.ndarray) -> list[np.ndarray]:
        """Fit all particles to what the background and their neighbours leave of their windows; returns the latter."""
        layers = Layers(*self.background, self.bare.margin, self.bare.pictures, self.bare.contour)
        shape, n = self.frames[0].shape, len(self.frames)
        splines = _each(lambda k: self._spline(
            k, self._left(k, place) - background_at(layers, stage[k], self.scale[k], shape)), n)
        windows = self._windows(place, splines)
        for particle, left in zip(self.particles, windows, strict=True):
            if particle.picture is not None:
                left += np.nan_to_num(particle.contrast, nan=0.0)[:, None, None].astype(np.float32) * particle.picture
        for p, particle in enumerate(self.particles):
            if particle.picture is not None and not self.touching[p]:
                particle.fit(windows[p])
        self._fit_touching(place, windows)
        return windows

    def _find_touching(self, place: np.ndarray) -> list[list[int]]:
        """For each particle the others whose pictures its own overlaps where they come closest."""
        touching: list[list[int]] = [[] for _ in self.particles]
        for p, ours in enumerate(self.particles):
            for q, theirs in enumerate(self.particles[:p]):
                apart = (place[p] - place[q]) * np.array(self.scale)[:, None]
                distance = np.where(np.isfinite(apart).all(-1), np.hypot(*apart.T), np.inf)
                k = int(np.argmin(distance))
                if ours.picture is None or theirs.picture is None or not np.isfinite(distance[k]):
                    continue
                laid = paint(theirs.support.shape, (apart[k] + theirs.half)[None], 1.0, (ours.support > 0)[None])
                if (laid & (theirs.support > 0)).any():
                    touching[p].append(q)
                    touching[q].append(p)
        return touching

    def _fit_touching(self, place: np.ndarray, windows: list[np.ndarray]) -> None:
        """Fit particles that touch, one after the other and again; what one gains is taken off the others' windows."""
        drawn = {(p, q): self._drawn_for(p, q, place) for p, near in enumerate(self.touching) for q in near}
        for _ in range(_TURNS):
            for p, near in enumerate(self.touching):
                if not near:
                    continue
                self.particles[p].fit(windows[p])
                for q in near:
                    before, drawn[p, q] = drawn[p, q], self._drawn_for(p, q, place)
                    for k, (box, picture) in drawn[p, q].items():
                        windows[q][k][box] -= picture - before[k][1]

    def _drawn_for(self, p: int, q: int, place: np.ndarray) -> dict[int, tuple]:
        """Particle p as it stands in the windows of q: by frame, the part of the window, and what p adds there."""
        ours, theirs = self.particles[p], self.particles[q]
        drawn = {}
        for k in np.flatnonzero(np.isfinite(ours.contrast)):
            centre = (place[p, k] - place[q, k]) * self.scale[k] + theirs.half
            if not np.isfinite(centre).all():
                continue
            low = np.maximum(np.ceil(centre - ours.half).astype(int), 0)
            high = np.minimum(np.floor(centre + ours.half).astype(int) + 1, theirs.side)
            if (high > low).all():
                box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
                picture = ours.sprite.draw(centre - low, 1.0, tuple(high - low))
                drawn[int(k)] = box, np.float32(ours.contrast[k]) * picture
        return drawn

    def _fit_background(self, place: np.ndarray, stage: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean of what the particles leave of the frames, (Y, X), as far as it is no noise, and where it is known."""
        size = self.bare.background.shape
        sums, counts = np.zeros((2, *size), np.float32), np.zeros((2, *size), np.float32)
        drawn = _each(lambda k: _on_stage(self._left(k, place), self.sure[k], stage[k], self.scale[k], self.bare),
                      len(self.frames))
        for k, (picture, seen) in enumerate(drawn):
            sums[k % 2] += np.where(seen, picture, 0)
            counts[k % 2] += seen
        count = counts.sum(0)
        known = count > 0.3 * len(self.frames)
        mean = np.where(known, sums.sum(0) / np.maximum(count, 1), 0)
        self.kept = wiener_shares(mean, sums, counts, known)
        return np.where(known, filtered(mean, self.kept), 0).astype(np.float32), known
