"""Whether a frame is blurred: power of its fine structure, less the photon noise, beside that of frames like it."""

import functools

import numpy as np
from scipy import fft

#: Side of the tiles whose spectra are averaged, px.
TILE = 64
#: Upper limit of the coarse band, limits of the fine one, and lower limit of what is noise alone, cycles per px. A blur
#: of 3 px (standard deviation) leaves 0.03 of the power in the fine band and nearly all of it in the coarse one; beyond
#: the last limit the microscope's own blur has left nothing.
COARSE, FINE, NOISE = 0.05, (0.08, 0.2), 0.42
#: Directions that are told apart, as motion during the exposure blurs along one of them only.
SECTORS = 4
#: Numbers that say how sharp a frame is: coarse power, fine power of each direction, standard error of the latter.
BANDS = 2 + SECTORS
#: Share of a tile's pixels that must be valid.
_FILLED = 0.99
#: Frames that a frame is compared with: at most and at least.
PEERS, FEWEST_PEERS = 16, 5
#: A frame is blurred if less than this share of the fine power that its peers show is left, surely (standard errors)
#: and far outside of what its peers differ by (robust standard deviations, of which none is below the least).
_LEFT, _SURE, _OUTLIER, _LEAST_SCATTER = 0.3, 3.0, 4.0, 0.1
#: Exponents with which fine power may follow coarse power.
_EXPONENTS = np.linspace(0, 1.2, 13)


def band_powers(density: np.ndarray) -> np.ndarray:
    """Power of a frame's structure in a coarse band and, direction by direction, in a fine one, less the noise.

    Spectra of overlapping tiles under a Hann window are averaged (Welch 1967, doi:10.1109/TAU.1967.1161901). Photon
    noise is white: its power, taken where nothing else is left, is subtracted from all bands.

    Parameters
    ----------
    density : array, shape (ny, nx), float
        Optical density above the background, NaN where invalid.

    Returns
    -------
    array, shape (BANDS,), float64
        Mean power spectral density (px2) in the coarse band, in the fine band about the directions y, then in steps of
        45 degrees, and the standard error that noise gives each of the latter. NaN for a frame that holds no whole tile
        of valid pixels.
    """
    unknown = np.full(BANDS, np.nan)
    if min(density.shape) < TILE:
        return unknown
    window = np.hanning(TILE + 2)[1:-1].astype(np.float32)
    window = window[:, None] * window
    coarse, noise, fine = _bands()
    total, tiles = np.zeros(noise.shape), 0
    columns = np.arange(0, density.shape[1] - TILE + 1, TILE // 2)
    for top in range(0, density.shape[0] - TILE + 1, TILE // 2):
        row = np.lib.stride_tricks.sliding_window_view(density[top : top + TILE], TILE, axis=1)[:, columns]
        row = row.swapaxes(0, 1)
        valid = np.isfinite(row)
        row = np.where(valid, row, 0)[valid.mean(axis=(1, 2)) >= _FILLED].astype(np.float32)
        level = (row * window).sum(axis=(1, 2), keepdims=True) / window.sum()
        spectrum = fft.rfft2((row - level) * window)
        total += (spectrum.real**2 + spectrum.imag**2).sum(axis=0, dtype=np.float64)
        tiles += len(row)
    if not tiles:
        return unknown
    power = total / (tiles * float((window**2).sum()))
    floor = power[noise].mean()
    # A Hann window makes 2.25 neighbouring modes one, tiles that overlap by half are worth half their number.
    independent = max(1.0, tiles / 2 * min(band.sum() for band in fine) / 2.25)
    return np.array([power[coarse].mean() - floor, *(power[band].mean() - floor for band in fine),
                     floor / np.sqrt(independent)])


@functools.cache
def _bands() -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Modes of a tile's half spectrum in the coarse band, of noise alone, and in the fine band of each direction."""
    y, x = fft.fftfreq(TILE)[:, None], fft.rfftfreq(TILE)[None]
    radius = np.hypot(y, x)
    sector = np.rint(np.mod(np.arctan2(x, y), np.pi) / (np.pi / SECTORS)).astype(int) % SECTORS
    half = (x > 0) | (y > 0)  # of a wave along y the half spectrum holds both halves
    fine = half & (radius > FINE[0]) & (radius <= FINE[1])
    return (half & (radius <= COARSE), half & (radius > NOISE), [fine & (sector == k) for k in range(SECTORS)])


def blurred_frames(powers: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Which frames are blurred, by what is left of the fine structure that frames of like energy show.

    A frame's peers are those nearest in energy and, among equals, in number: they show the same matter at nearly the
    same contrast. They tell what fine power goes with the frame's coarse power, which a blur leaves, so that a weak
    contrast does not look like a blur. A frame is blurred if in some direction, or in all together, most of that fine
    power is gone, if noise cannot explain it, and if its peers do not themselves differ so much. Where noise hides the
    fine structure nothing is said, and a frame without structure has none to lose: in doubt a frame is good. Where most
    peers are blurred none of them is found.

    Parameters
    ----------
    powers : array, shape (frames, BANDS)
        From `band_powers`; NaN for frames that are bad for another reason.
    energy : array, shape (frames,), eV

    Returns
    -------
    array, shape (frames,), bool

    Notes
    -----
    At ample counts, frames count as blurred from a Gaussian of about 1.75 px (standard deviation) or motion by about
    6 px on (`tests/test_sharpness.py`).

    References
    ----------
    "Image registration for accurate electrode deformation analysis in operando microscopy of battery materials", J.
    Synchrotron Rad. 32 (2025), leaves blurred frames out by their power spectrum too. The comparison with frames of
    like energy and coarse power is ours, as the energy changes the contrast from frame to frame.
    """
    known = np.isfinite(powers).all(axis=1) & np.isfinite(energy)
    # Each direction, and all together, in which noise counts less.
    fine = np.column_stack([powers[:, 1:-1], powers[:, 1:-1].mean(axis=1)])
    sigma = np.maximum(powers[:, -1:] * np.append(np.ones(SECTORS), SECTORS**-0.5), 1e-30)
    # Noise may leave nothing or less than that; no logarithm of it.
    coarse, at_most = np.log(np.maximum(powers[:, :1], sigma[:, :1])), np.log(np.maximum(fine + _SURE * sigma, sigma))
    fine = np.log(np.maximum(fine, sigma))
    blurred = np.zeros(len(powers), dtype=bool)
    for k in np.flatnonzero(known):
        peers = _peers(k, known, energy)
        if len(peers) >= FEWEST_PEERS:
            expected, scatter = _expect(coarse[peers], fine[peers], coarse[k])
            lost = np.maximum(-np.log(_LEFT), _OUTLIER * np.maximum(scatter, _LEAST_SCATTER))
            blurred[k] = (at_most[k] < expected - lost).any()
    return blurred


def _expect(coarse: np.ndarray, fine: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fine power (sectors,) that goes with a frame's `own` coarse power (1,), and how far peers scatter about it.

    The peers' `fine` (n, sectors) follows their `coarse` (n, 1) with the exponent that leaves the least scatter, all as
    logarithms. It is 1 where all matter gains contrast at the edge, 0 where what is fine is other matter, and no line
    is drawn beyond the peers.
    """
    own = np.clip(own, coarse.min(), coarse.max())
    rest = fine - _EXPONENTS[:, None, None] * (coarse - own)
    middle = np.median(rest, axis=1)
    away = np.abs(rest - middle[:, None])
    # The mean chooses, as the median does not heed a minority of another contrast; a blurred one moves no line much.
    best = away.mean(axis=1).argmin(axis=0)[None]
    scatter = 1.4826 * np.median(away, axis=1)
    return np.take_along_axis(middle, best, 0)[0], np.take_along_axis(scatter, best, 0)[0]


def _peers(frame: int, known: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Known frames nearest in energy, then in number."""
    others = np.flatnonzero(known)
    others = others[others != frame]
    # To a tenth of an eV: monochromators repeat an energy no better, and it makes no difference.
    away = np.rint(np.abs(energy[others] - energy[frame]) * 10)
    return others[np.lexsort((np.abs(others - frame), away))[:PEERS]]
