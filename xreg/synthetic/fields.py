"""Random fields that can be moved by fractions of a pixel: background texture, the crackle of the illumination."""

import numpy as np
from scipy import fft, sparse


def random_field(shape: tuple[int, int], length: float, seed: list[int]) -> np.ndarray:
    """Periodic Gaussian random field with the given correlation length (px), mean 0, deviation 1, a margin wider."""
    size = [fft.next_fast_len(n + 64, real=True) for n in shape]
    noise = np.random.default_rng(seed).standard_normal(size)
    ky, kx = fft.fftfreq(size[0])[:, None], fft.rfftfreq(size[1])
    smooth = fft.irfft2(fft.rfft2(noise) * np.exp(-2 * (np.pi * length / 2) ** 2 * (ky**2 + kx**2)), s=size)
    return (smooth - smooth.mean()) / smooth.std()


def shifted(canvas: np.ndarray, shift: np.ndarray, scale: float, shape: tuple[int, int]) -> np.ndarray:
    """The periodic field moved by `shift` (reference px) and seen at `scale` reference px per px, (y, x).

    `canvas` holds the field's cubic spline coefficients. The field has no wavelength near two pixels, so that the
    interpolation error is far below noise.
    """
    rows, columns = (_spline_weights(n, size, (n - 1) / 2 * (1 - scale) - move, scale)
                     for n, size, move in zip(shape, canvas.shape, shift, strict=True))
    return (columns @ (rows @ canvas).T).T


def _spline_weights(n: int, size: int, first: float, step: float) -> sparse.csr_array:
    """Cubic spline weights that sample a periodic axis of `size` coefficients at first + step * (0...n - 1)."""
    place = first + step * np.arange(n)
    base = np.floor(place).astype(int)
    t = place - base
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 3 * (1 - t) ** 3 - 6 * (1 - t) ** 2 + 4, t**3]) / 6
    columns = (base + np.arange(-1, 3)[:, None]) % size
    return sparse.csr_array((weights.T.ravel(), columns.T.ravel(), np.arange(0, 4 * n + 1, 4)), shape=(n, size))
