"""Pictures by the lengths of their waves: power, and the Wiener filter that tells structure from noise."""

import numpy as np
from scipy import fft

#: Lengths of waves that are told apart, from the longest to the shortest along a diagonal.
RINGS = 96
_PER_CYCLE = RINGS * 4 / 3
#: Their wave numbers, cycles per px.
WAVE_NUMBERS = (np.arange(RINGS) + 0.5) / _PER_CYCLE


def wiener_shares(mean: np.ndarray, sums: np.ndarray, counts: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Wiener filter of a mean picture, by lengths of waves: those in which its two halves do not agree are noise.

    Parameters
    ----------
    mean, known : ndarray, shape (y, x)
        The mean of all frames, and where there is one.
    sums, counts : ndarray, shape (2, y, x)
        Sum and number of the frames of either half.

    Returns
    -------
    ndarray, shape (RINGS,), float32
        Share of each wave's amplitude that is structure, 0 to 1.
    """
    both = known & (counts > 0).all(0)
    if not both.any():
        return np.ones(RINGS, np.float32)
    first, second = (np.where(both, s / np.maximum(c, 1), 0) for s, c in zip(sums, counts, strict=True))
    size = [fft.next_fast_len(n, real=True) for n in mean.shape]
    power, _ = mean_power(fft.rfft2(mean.astype(np.float32), size), size)
    noise, _ = mean_power(fft.rfft2(((first - second) / 2).astype(np.float32), size), size)
    return np.clip(1 - noise / np.maximum(power, 1e-30), 0, 1).astype(np.float32)


def filtered(picture: np.ndarray, share: np.ndarray) -> np.ndarray:
    """A picture of whose waves only shares are kept, by their lengths."""
    size = [fft.next_fast_len(n, real=True) for n in picture.shape]
    waves = fft.rfft2(picture.astype(np.float32), size)
    return fft.irfft2(waves * share[ring_numbers(size)], size)[: picture.shape[0], : picture.shape[1]]


def mean_power(waves: np.ndarray, size: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Mean power of waves (from rfft2) by their length, and to which length each belongs."""
    ring = ring_numbers(size)
    count = np.bincount(ring.ravel(), minlength=RINGS)
    power = np.bincount(ring.ravel(), (waves.real**2 + waves.imag**2).ravel(), RINGS)
    # Small pictures have no wave of some lengths; those of the next shorter stand in.
    return np.interp(np.arange(RINGS), np.flatnonzero(count), (power / np.maximum(count, 1))[count > 0]), ring


def ring_numbers(size: list[int]) -> np.ndarray:
    """Number of each wave (of rfft2) by its length, 0 the longest."""
    ky, kx = fft.fftfreq(size[0])[:, None], fft.rfftfreq(size[1])
    return np.minimum((np.hypot(ky, kx) * _PER_CYCLE).astype(int), RINGS - 1)
