"""Ghosts: what a particle that hardly moves against the stage has left of itself in the background, taken out again."""

import numpy as np
from scipy import fft, ndimage

from xreg.kernels.layers import MARGIN, Layers, Sprite, paint
from xreg.kernels.portraits import Portrait
from xreg.kernels.subpixel import Template, likeness_of_neighbours
from xreg.kernels.waves import filtered, mean_power, ring_numbers

#: Texture is judged through a mask whose rims are so soft (px), and down to this part of its strongest waves' power.
_SOFT_RIM, _LEAST_POWER = 4, 1e-7
#: The background behind a particle is within so many standard deviations of that beside particles.
_MOST_TEXTURE = 3.0


def take_out_ghosts(
    background: np.ndarray, known: np.ndarray, layers: Layers, kept: np.ndarray, particles: list[Portrait],
    centre: np.ndarray, windows: list[np.ndarray],
) -> None:
    """Take out of the background, in place, the ghosts that neither the frames nor its texture speak for.

    A ghost is the particle's picture, or its slope along y or x, at its mean place on the stage. The frames tell it
    by how far the particle moves against the stage; the texture elsewhere, which has few waves as short as an
    outline, tells how much of a ghost can be texture by chance. Both are linear fits, and are weighed against each
    other by what they know. A ghost has gone through the same filter as the background: without that the waves that
    the filter takes out would speak against it.

    Parameters
    ----------
    background, known : ndarray, shape (Y, X)
        The background, and where it is known.
    layers : Layers
        With the particles' outlines.
    kept : ndarray, shape (RINGS,)
        Share of each wave's amplitude that the background's filter has kept.
    particles : list of Portrait
    centre : ndarray, shape (particles, n, 2)
        Their places on the background.
    windows : list of ndarray, shape (n, h, w)
        What background and neighbours leave of each particle's windows.
    """
    if not known.any() or not background.any():
        return
    size = [fft.next_fast_len(n, real=True) for n in background.shape]
    open_ = known & ~paint(background.shape, mean_place(centre), 1.0, layers.rims)
    if open_.sum() < 1000:
        return
    # Behind a particle the background is like elsewhere.
    middle = np.median(background[open_])
    far = _MOST_TEXTURE * 1.4826 * np.median(np.abs(background[open_] - middle))
    np.clip(background, middle - far, middle + far, out=background, where=~open_ & known)
    power, ring = mean_power(*texture_waves(background, open_))
    # Made white, texture has variance 1 in every pixel.
    even = (1 / np.sqrt(np.maximum(power, _LEAST_POWER * power.max()))).astype(np.float32)
    white = fft.irfft2(fft.rfft2(background, size) * even[ring], size)[: background.shape[0], : background.shape[1]]
    for particle, track, left in zip(particles, centre, windows, strict=True):
        seen = np.flatnonzero(np.isfinite(particle.contrast))
        if particle.picture is None or not seen.size:
            continue
        middle = track[seen].mean(axis=0)
        low = np.rint(middle).astype(int) - particle.half - MARGIN
        side = fft.next_fast_len(particle.side + 2 * MARGIN, real=True)
        # The part of the window that lies on the background: `here` in the background, `ours` in the window.
        here = tuple(slice(max(a, 0), min(a + side, n)) for a, n in zip(low, background.shape, strict=True))
        ours = tuple(slice(h.start - a, h.stop - a) for h, a in zip(here, low, strict=True))
        soft = Sprite.of(filtered(np.pad(particle.picture, MARGIN), kept))
        ghosts = _ghosts(soft, middle - low, (side, side))
        seeming = fft.irfft2(fft.rfft2(ghosts) * even[ring_numbers([side, side])], (side, side))
        seeming = seeming[:, *ours].reshape(3, -1)
        normal, right = seeming @ seeming.T, seeming @ white[here].ravel()
        more, said = _what_frames_say(particle, soft, track - middle, left, seen)
        amount = np.linalg.solve(normal + more + 1e-9 * np.eye(3) * np.trace(normal), right - said)
        background[here] -= np.where(known[here], np.tensordot(amount, ghosts, 1)[ours], 0).astype(np.float32)


def _what_frames_say(particle, soft, moved, windows, seen) -> tuple[np.ndarray, np.ndarray]:
    """Normal matrix and right side of the fit of ghosts to what particle and background leave of the frames."""
    template = Template.of(particle.known_picture(), particle.contour)
    inner = (slice(particle.half - template.half, particle.half + template.half + 1),) * 2
    mask = template.mask
    absorbed, _ = np.linalg.qr(template.basis[mask])
    shape, middle = template.mask.shape, np.full(2, float(template.half))
    left, columns = [], []
    for k in seen:
        window = windows[k][inner][mask] - particle.contrast[k] * template.picture[mask]
        valid = np.isfinite(window)
        drawn = _ghosts(soft, middle - moved[k], shape)[:, mask].T
        drawn, window = np.where(valid[:, None], drawn, 0), np.where(valid, window, 0)
        left.append(window - absorbed @ (absorbed.T @ window))
        columns.append(drawn - absorbed @ (absorbed.T @ drawn))
    # What is the same in all frames, up to the contrast, is part of the picture.
    contrast = particle.contrast[seen]
    columns, left = np.array(columns), np.array(left)
    columns -= contrast[:, None, None] * np.tensordot(contrast, columns, 1) / (contrast @ contrast)
    left -= contrast[:, None] * (contrast @ left) / (contrast @ contrast)
    alike = np.median([likeness_of_neighbours(row, mask, np.ones(len(row), bool)) for row in left])
    noise = np.maximum((left**2).mean(), 1e-12) * alike
    return np.einsum("kic,kid->cd", columns, columns) / noise, np.einsum("kic,ki->c", columns, left) / noise


def texture_waves(background: np.ndarray, open_: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Waves (from rfft2) of the background beside particles, of which the square is power per pixel, and their grid.

    Seen through holes with sharp rims, long waves would look like short ones, of which there may be none.
    """
    size = [fft.next_fast_len(n, real=True) for n in background.shape]
    inner = ndimage.binary_erosion(open_, iterations=2 * _SOFT_RIM)
    inner = inner if inner.sum() > 0.1 * open_.sum() else open_
    weight = ndimage.gaussian_filter(inner.astype(np.float32), _SOFT_RIM, truncate=2.0)
    # What stands out far is matter that was not detected; it must not pass for texture.
    middle = np.median(background[inner])
    far = _MOST_TEXTURE * 1.4826 * np.median(np.abs(background[inner] - middle))
    texture = np.clip(background - middle, -far, far)
    texture = weight * (texture - (weight * texture).sum() / weight.sum())
    return fft.rfft2(texture / np.sqrt((weight**2).sum()), size), size


def _ghosts(sprite: Sprite, centre: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A picture and its slopes along y and x about a centre, (3, h, w)."""
    drawn = sprite.draw(centre, 1.0, shape)
    return np.stack([drawn, *np.gradient(drawn)])


def mean_place(place: np.ndarray) -> np.ndarray:
    """Mean (particles, 2) of each particle's places (particles, n, 2) where it is seen; NaN where it never is."""
    known = np.isfinite(place)
    return np.where(known.any(1), np.where(known, place, 0).sum(1) / np.maximum(known.sum(1), 1), np.nan)
