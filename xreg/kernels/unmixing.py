"""Where a particle is in front of a background, whatever both look like.

Fitted in turn, position, particle and background follow each other slowly: a particle that lies a little elsewhere
before the edge than behind it is nearly made up for by a ghost of its rim in the background. Here particle and
background are eliminated instead, wave by wave, as in variable projection (Golub & Pereyra 1973, doi:10.1137/0710036),
and only the positions are left to be fitted. What the background may look like is told by its power beside the
particle, and by the likeliest power behind it where that is less.
"""

import numpy as np
from scipy import fft

#: Steps of at most this length (px) are taken, at most so many, and none shorter than the last.
_LONGEST_STEP, _STEPS, _SHORTEST_STEP = 1.0, 8, 0.003
#: Turns in each step in which the background and its power are guessed (expectation maximisation).
_GUESSES = 5
#: Waves shorter than this (px) are left out: the microscope's blur has left noise alone.
_SHORTEST_WAVE = 2.5
#: Ridge, in units of the normal matrix's diagonal, that holds directions of which nothing is known.
_RIDGE = 1e-4
#: Waves that are worked on at once; of large particles there are many.
_WAVES = 4096
#: Rings in which noise is averaged.
_RINGS = 24


def unmix(windows: np.ndarray, contrast: np.ndarray, ground: np.ndarray, taper: np.ndarray, texture) -> np.ndarray:
    """Shifts of a particle in windows that show it in front of a background, both unknown.

    Parameters
    ----------
    windows : ndarray, shape (n, h, w)
        Optical density about the particle's supposed places, without other particles. Each window has an offset and a
        tilt of its own: under the taper these would else be a picture that stays where it is.
    contrast : ndarray, shape (n,)
        Of the particle in each window.
    ground : ndarray, shape (n, 2)
        Shift (y, x) of the background in each window, px, from any origin.
    taper : ndarray, shape (h, w)
        Weight of the pixels, falling softly to 0 before the margin.
    texture : callable
        Power spectral density of the background beside (variance per pixel and wave) at wave numbers (cycles per px).

    Returns
    -------
    ndarray, shape (n, 2)
        Shift (y, x) of the particle in each window, px, their mean zero; zero where nothing can be said.
    """
    n = len(windows)
    qy, qx = fft.fftfreq(taper.shape[0])[:, None], fft.rfftfreq(taper.shape[1])[None]
    length = np.hypot(qy, qx)
    used = (length > 0) & (length < 1 / _SHORTEST_WAVE)
    data = fft.rfft2(windows * taper)[:, used]
    q = np.stack([np.broadcast_to(f, length.shape)[used] for f in (qy, qx)])
    # The half plane holds most waves once for two.
    twice = np.where(q[1] > 0, 2.0, 1.0)
    y, x = np.ogrid[-1:1:taper.shape[0] * 1j, -1:1:taper.shape[1] * 1j]
    plane = fft.rfft2(np.stack([taper, taper * y, taper * x]))[:, used]
    prior = beside = np.maximum(texture(length[used]), 1e-30) * float((taper**2).sum())
    ring = np.minimum((length[used] * _SHORTEST_WAVE * _RINGS).astype(int), _RINGS - 1)
    floor = _first_noise(data, ring)
    behind = np.exp(-2j * np.pi * (ground @ q))
    shift, level = np.zeros((n, 2)), np.zeros((n, 3))
    for _ in range(_STEPS):
        before = contrast[:, None] * np.exp(-2j * np.pi * (shift @ q))
        flat = data - level @ plane
        g12 = (behind.conj() * before).sum(0)
        r1, r2 = (behind.conj() * flat).sum(0), (before.conj() * flat).sum(0)
        g22 = (contrast**2).sum() * (1 + 1e-6)
        for _ in range(_GUESSES):
            # Background and particle of every wave: a ridge of two unknowns.
            g11 = n + floor / prior
            determinant = g11 * g22 - np.abs(g12) ** 2
            ground_wave = (g22 * r1 - g12 * r2) / determinant
            particle_wave = (g11 * r2 - g12.conj() * r1) / determinant
            # What is behind this particle may be plainer than what is beside it: its likeliest power, by rings.
            likely = np.abs(ground_wave) ** 2 + floor * g22 / determinant
            prior = beside * np.minimum(_by_ring(likely / beside, ring), 1)
        left = flat - behind * ground_wave - before * particle_wave
        floor = _by_ring((np.abs(left) ** 2).sum(0) / max(n - 2, 1), ring)
        weight = twice / floor
        normal, right = np.zeros((5 * n, 5 * n)), np.zeros(5 * n)
        for first in range(0, len(twice), _WAVES):
            part = np.s_[..., first:first + _WAVES]
            moving = -2j * np.pi * q[part] * (before * particle_wave)[:, None][part]
            slopes = np.concatenate([moving, np.broadcast_to(plane[part], (n, *plane[part].shape))], axis=1)
            ridge = g11[part], g22, g12[part]
            some = _eliminated(slopes, left[part], behind[part], before[part], ridge, weight[part])
            normal, right = normal + some[0], right + some[1]
        size = np.sqrt(np.maximum(np.diag(normal), 1e-30))
        normal = normal / size[:, None] / size + _RIDGE * np.eye(5 * n)
        step = (np.linalg.solve(normal, right / size) / size).reshape(n, 5)
        # The mean shift is the picture's.
        moved = np.clip(step[:, :2] - step[:, :2].mean(axis=0), -_LONGEST_STEP, _LONGEST_STEP)
        shift, level = shift + moved, level + step[:, 2:]
        if np.abs(moved).max() < _SHORTEST_STEP:
            break
    return shift - shift.mean(axis=0)


def _eliminated(slopes, left, behind, before, ridge, weight) -> tuple[np.ndarray, np.ndarray]:
    """Normal matrix and right side for the unknowns of all windows, with both pictures' waves eliminated.

    `slopes` (n, unknowns, waves) says how each window's model changes, `left` (n, waves) what it leaves over.
    """
    n, unknowns, _ = slopes.shape
    g11, g22, g12 = ridge
    determinant = g11 * g22 - np.abs(g12) ** 2
    right = (slopes.conj() * left[:, None] * weight).real.sum(-1).ravel()
    ours, theirs = ((slopes.conj() * a[:, None]).reshape(len(right), -1) for a in (behind, before))
    normal = -(((g22 * ours - g12.conj() * theirs) / determinant * weight) @ ours.conj().T).real
    normal -= (((g11 * theirs - g12 * ours) / determinant * weight) @ theirs.conj().T).real
    blocks = np.einsum("kaw,kbw->kab", slopes.conj(), slopes * weight).real
    for k in range(n):
        own = slice(unknowns * k, unknowns * (k + 1))
        normal[own, own] += blocks[k]
    return normal, right


def _first_noise(data: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Noise power at each wave, taken as that of the shortest waves."""
    power = (np.abs(data) ** 2).mean(0)
    return np.full(len(ring), max(float(np.median(power[ring >= _RINGS - 4])), 1e-30))


def _by_ring(power: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Mean of powers over waves of about the same length."""
    count = np.bincount(ring, minlength=_RINGS)
    return np.maximum(np.bincount(ring, power, _RINGS) / np.maximum(count, 1), 1e-30)[ring]
