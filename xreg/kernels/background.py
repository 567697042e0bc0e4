"""The open background of a frame, and how the illumination behind it changes.

A frame is averaged into square cells, about 64 along its shorter side; whatever is broad (offset, tilt, a
wandering beam) is measured in cells, whatever is fine (the grain of the illumination, noise) in pixels.
Arrays are of one frame, (y, x), y down; optical densities are natural logarithms, NaN where invalid.
"""

import numpy as np
from scipy import ndimage

#: Cells per side into which a frame is averaged before its background is fitted.
CELLS = 64
#: Side (px) of the tiles in which the noise of the background is measured, and how many tiles suffice.
TILE, MOST_TILES = 24, 300
#: Share of the cells that must remain as background once everything near a particle is left out.
FEWEST_CELLS = 0.08


def fit_background(density: np.ndarray, lit: np.ndarray | None = None, modes: np.ndarray | None = None) -> np.ndarray:
    """Offset and tilt of the open background of a frame whose particles are broad and absorb.

    The frame is averaged into about 64 x 64 cells. A plane is laid under them (their 6 % quantile), which
    follows the background as long as particles leave some of it open everywhere; then cells above the
    background's own scatter, and their neighbours, are left out and the surface is fitted to the rest by
    least squares, until nothing changes.

    Measured on simulated frames (460 x 460 px, noise 0.02, particles of 18 to 60 px radius and contrasts from
    0.04 to 0.9 covering none to 62 % of the frame): the offset is within 0.0003 and the tilt within 0.001 of
    the truth.

    Parameters
    ----------
    density : array, shape (ny, nx), float
        Optical density; NaN where invalid.
    lit : array, shape (ny, nx), bool, optional
        Pixels to use; all by default.
    modes : array, shape (k, cells_y, cells_x), optional
        Components of the illumination (see `illumination_modes`) to fit along; the prior of each is one
        standard deviation, so that a crowded frame does not bend them at will.

    Returns
    -------
    coefficients : array, shape (3 + k,), float64
        Offset at the frame's centre, slope along y and slope along x, in optical density per frame height or
        width, and the amount of every component. NaN if fewer than 16 cells hold data.
    """
    value, filled, y, x = _cells(density, lit)
    modes = np.zeros((0, *value.shape)) if modes is None or not len(modes) else modes
    if filled.sum() < 16:
        return np.full(3 + len(modes), np.nan)
    design = np.concatenate([_design(y, x), modes])
    seen = np.where(filled, value, np.nan)
    surface = np.zeros(len(design))
    surface[:3] = _quantile_plane(design[:3, filled].T[::2], seen[filled][::2], 0.06)
    for _ in range(15):
        used, scatter = _background_cells(seen - np.tensordot(surface, design, 1), filled)
        # Cells are not independent; ten of them are taken to say as much as one.
        prior = np.diag(np.r_[np.zeros(3), np.full(len(modes), 10 * scatter**2)])
        columns = design[:, used]
        update = np.linalg.lstsq(columns @ columns.T + prior, columns @ seen[used], rcond=None)[0]
        settled = np.abs(update - surface).max() < 1e-5
        surface = update
        if settled:
            break
    return surface


def background_surface(coefficients: np.ndarray, shape: tuple[int, int], modes: np.ndarray | None = None) -> np.ndarray:
    """Background of the given coefficients (see `fit_background`), (ny, nx) float32."""
    offset, slope_y, slope_x = coefficients[:3]
    y, x = (_along(n) for n in shape)
    plane = ((offset + slope_y * y)[:, None] + slope_x * x).astype(np.float32)
    if len(coefficients) == 3:
        return plane
    return plane + _spread_cells(np.tensordot(coefficients[3:], modes, 1), shape)


def background_noise(density: np.ndarray, lit: np.ndarray | None = None) -> float:
    """Standard deviation of the optical density in the open background.

    It is measured robustly in tiles of 24 x 24 px about each tile's own median, so that photon noise and the
    grain of the illumination count and slow unevenness does not. Tiles that hold anything of a particle are
    told by their larger median and scatter: of the 40 % of least absorption, the scatter that 40 % of them
    stay below is returned.

    Parameters
    ----------
    density : array, shape (ny, nx), float
        Optical density above the background, NaN where invalid.
    lit : array, shape (ny, nx), bool, optional
        Pixels to use; all by default.

    Returns
    -------
    noise : float
        NaN if the frame has no valid pixel.
    """
    side = min(TILE, *density.shape)
    tiles = _tiles(density, side)
    if lit is not None:
        tiles = tiles[_tiles(lit, side).all(axis=(1, 2))]
    # A few hundred tiles tell as much as all of them.
    tiles = tiles[:: max(1, len(tiles) // MOST_TILES)].reshape(-1, side * side)
    tiles = tiles[np.isfinite(tiles).all(axis=1)]
    if not len(tiles):
        valid = density[np.isfinite(density) & (True if lit is None else lit)]
        tiles = valid[None, :]
    if not tiles.size:
        return float("nan")
    middle = np.median(tiles, axis=1)
    dark = middle <= np.quantile(middle, 0.4)
    scatter = 1.4826 * np.median(np.abs(tiles[dark] - middle[dark, None]), axis=1)
    return float(np.quantile(scatter, 0.4))


def illumination_modes(flats: np.ndarray, lit: np.ndarray, most: int = 4) -> np.ndarray:
    """Ways in which the illumination changes from one open-beam exposure to the next.

    Principal components of the logarithm of the exposures, averaged into cells, after each one's own offset
    and tilt are taken off. The beam of a capillary or a bending magnet wanders by more than a tilt, and a
    frame's open background can tell by how much (Van Nieuwenhove et al. 2015, who fit full-resolution
    components; here only the smooth part is, as the grain of the illumination stays where it is and averages
    over the exposures).

    Parameters
    ----------
    flats : array, shape (m, ny, nx)
        Dark-corrected open-beam exposures.
    lit : array, shape (ny, nx), bool
    most : int
        Number of components kept at the most; those that do not stand out from noise are dropped.

    Returns
    -------
    modes : array, shape (k, cells_y, cells_x), float64, k <= most
        Optical density of one standard deviation of each component; 0 in cells that are not lit.

    References
    ----------
    doi:10.1364/OE.23.027975
    """
    logs = []
    for flat in flats:
        with np.errstate(divide="ignore", invalid="ignore"):
            value, filled, y, x = _cells(np.log(np.where(flat > 0, flat, np.nan), dtype=np.float32), lit)
        logs.append(np.where(filled, value, np.nan))
    none = np.zeros((0, *value.shape))
    known = np.isfinite(logs).all(axis=0)
    if len(logs) < 4 or known.sum() < 16:
        return none
    design = _design(y, x)[:, known]
    rest = np.array([log[known] for log in logs])
    rest -= rest.mean(axis=0)
    rest -= np.linalg.lstsq(design.T, rest.T, rcond=None)[0].T @ design
    _, size, component = np.linalg.svd(rest, full_matrices=False)
    # One degree of freedom went with the mean; the median of the others is noise when few of them are real.
    keep = size[:most] > 2.5 * np.median(size[:-1])
    modes = np.zeros((int(keep.sum()), *value.shape))
    modes[:, known] = (component * size[:, None])[:most][keep] / np.sqrt(len(logs))
    return modes


def grain_variances(flats: np.ndarray, lit: np.ndarray) -> tuple[float, float]:
    """How much the fine structure of the illumination changes, and how noisy one exposure of it is.

    Parameters
    ----------
    flats : array, shape (m, ny, nx)
        Dark-corrected open-beam exposures in order of acquisition, of which 2 i and 2 i + 1 are neighbours.
    lit : array, shape (ny, nx), bool

    Returns
    -------
    grain, noise : float
        Variances of the logarithm: of the structure from one exposure to any other, and of the noise of a
        single exposure, which is what neighbours differ by.
    """
    if len(flats) < 4:
        return 0.0, 0.0
    mean = flats.mean(axis=0, dtype=np.float32)
    known = lit & np.isfinite(mean) & (mean > 0)
    if not known.any():
        return 0.0, 0.0
    # The brighter half speaks for what matters; every third pixel of it is enough.
    some = np.flatnonzero(known & (mean >= np.median(mean[known])))[::3]
    fine = np.array([_fine_ratio(flat, mean, some, lit) for flat in flats])
    total = _robust_variance(fine) * len(flats) / (len(flats) - 1)
    pairs = fine[: len(fine) // 2 * 2].reshape(-1, 2, fine.shape[1])
    noise = _robust_variance(pairs[:, 1] - pairs[:, 0]) / 2
    return max(0.0, total - noise), noise


def shrink_grain(reference: np.ndarray, mean: np.ndarray, lit: np.ndarray, share: float) -> np.ndarray:
    """Logarithm of a reference whose fine structure is that of the mean flat, but for a share of the difference.

    Parameters
    ----------
    reference, mean : array, shape (ny, nx), float32
        Open-beam pictures; `mean` is of many more exposures.
    lit : array, shape (ny, nx), bool
    share : float
        0 keeps only the broad differences (cells of 1/64 of the frame), 1 keeps the reference as it is.

    Returns
    -------
    log_reference : array, shape (ny, nx), float32
        Natural logarithm; NaN where the reference (or, if that is used, the mean) is not positive.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        if share > 0.95:
            return _finite(np.log(reference))
        broad = _finite(np.log(mean)) + _broad_log_ratio(reference, mean, lit)
        if share < 0.05:
            return broad
        own = np.log(reference) - broad
        return broad + np.float32(share) * np.where(np.isfinite(own), own, 0)


def grain_shift(density: np.ndarray, log_reference: np.ndarray, lag: int = 6, most: int = 40_000) -> np.ndarray:
    """How far the grain of the illumination has moved between a reference and a frame.

    A grain that has moved leaves its gradient in the optical density: -log(I(x - d) / I(x)) = d . grad(log I)
    to first order. The two components are fitted by least squares to differences over a few pixels, which
    know nothing of broad structures, with outliers (edges of particles) left out thrice.

    Parameters
    ----------
    density : array, shape (ny, nx), float
        Optical density, NaN where invalid.
    log_reference : array, shape (ny, nx), float32
        Natural logarithm of the reference.
    lag : int, px
    most : int
        Number of differences used, about; rows are left out to that end.

    Returns
    -------
    shift : array, shape (2,) = (dy, dx), px
        Zero if nothing can be fitted. Good for shifts up to about a pixel.
    """
    step = max(1, density.size // most)
    if density.shape[0] < 3 or density.shape[1] <= lag + 2:
        return np.zeros(2)
    slope_y = (log_reference[2::step] - log_reference[:-2:step])[:, 1:-1] / 2
    slope_x = (log_reference[1:-1:step, 2:] - log_reference[1:-1:step, :-2]) / 2
    pictures = np.stack([density[1:-1:step, 1:-1], slope_y, slope_x])
    differences = (pictures[:, :, lag:] - pictures[:, :, :-lag]).reshape(3, -1)
    differences = differences[:, np.isfinite(differences).all(axis=0)]
    shift = np.zeros(2, dtype=np.float32)
    for _ in range(3):
        rest = np.abs(differences[0] - shift @ differences[1:])
        if len(rest) < 100:
            return np.zeros(2)
        seen, *slopes = differences[:, rest <= 2.5 * 1.4826 * np.median(rest)].astype(float)
        (a, b), (_, c) = np.inner(slopes, slopes)
        # A flat without any grain tells nothing.
        if not a * c - b * b > 1e-9 * a * c:
            return np.zeros(2)
        shift = np.linalg.solve([[a, b], [b, c]], np.inner(slopes, seen)).astype(np.float32)
    return shift.astype(float)


def moved_grain(log_reference: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """What a shift of the grain (see `grain_shift`) adds to the optical density, to second order, (ny, nx) float32."""

    def along(image: np.ndarray) -> np.ndarray:
        slope = np.zeros_like(image)
        slope[1:-1] += np.float32(shift[0] / 2) * (image[2:] - image[:-2])
        slope[:, 1:-1] += np.float32(shift[1] / 2) * (image[:, 2:] - image[:, :-2])
        return slope

    if np.abs(shift).max() < 0.02:
        return np.zeros_like(log_reference)
    first = along(log_reference)
    moved = first - along(first) / 2
    moved[~np.isfinite(moved)] = 0
    return moved


def _along(n: int) -> np.ndarray:
    """Pixel centres along an axis as shares of its length about its middle."""
    return (np.arange(n) - (n - 1) / 2) / n


def _tiles(image: np.ndarray, side: int) -> np.ndarray:
    """Cut into squares; the remainder at the far edges is left out. (tile, side, side)."""
    ny, nx = (n // side for n in image.shape)
    cut = image[: ny * side, : nx * side].reshape(ny, side, nx, side)
    return cut.swapaxes(1, 2).reshape(ny * nx, side, side)


def _cells(density: np.ndarray, lit: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """Means of the cells, which of them hold enough pixels, and their centres along y and x; all (cells, cells)."""
    side = max(1, min(density.shape) // CELLS)
    ny, nx = (n // side for n in density.shape)
    valid = np.isfinite(density) if lit is None else np.isfinite(density) & lit
    masked = np.where(valid, density, 0)

    def total(image: np.ndarray) -> np.ndarray:
        cut = image[: ny * side, : nx * side]
        return np.add.reduce(np.add.reduce(cut.reshape(ny, side, nx * side), 1).reshape(ny, nx, side), 2)

    count = total(valid.astype(np.float32))
    value = total(masked) / np.maximum(count, 1)
    y, x = (_along(n)[: m * side].reshape(m, side).mean(1) for n, m in zip(density.shape, (ny, nx), strict=True))
    y, x = np.broadcast_arrays(y[:, None], x[None, :])
    return value.astype(float), count >= 0.5 * side * side, y, x


def _design(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Offset and the two slopes at every cell, (3, cells, cells)."""
    return np.stack([np.ones(y.shape), y, x])


def _broad_log_ratio(image: np.ndarray, mean: np.ndarray, lit: np.ndarray) -> np.ndarray:
    """Smooth part of log(image / mean), (ny, nx) float32: of the ratio of cell means, and linear between cells."""
    valid = lit & np.isfinite(image) & np.isfinite(mean)
    value, filled, *_ = _cells(image, valid)
    other, *_ = _cells(mean, valid)
    usable = filled & (value > 0) & (other > 0)
    if not usable.any():
        return np.zeros(image.shape, dtype=np.float32)
    log = np.zeros(value.shape)
    log[usable] = np.log(value[usable] / other[usable])
    if not usable.all():
        log = log[tuple(ndimage.distance_transform_edt(~usable, return_distances=False, return_indices=True))]
    return _spread_cells(log, image.shape)


def _spread_cells(cells: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Interpolate cell values linearly to pixels, (ny, nx) float32."""
    side = max(1, min(shape) // CELLS)
    rows, columns = (_interpolation(n, m, side) for n, m in zip(shape, cells.shape, strict=True))
    return rows @ cells.astype(np.float32) @ columns.T


def _interpolation(n: int, cells: int, side: int) -> np.ndarray:
    """Weights (n, cells) that interpolate linearly from cell centres to pixels, flat beyond the outermost centres."""
    at = np.clip((np.arange(n) - (side - 1) / 2) / side, 0, cells - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells))).astype(np.float32)


def _finite(image: np.ndarray) -> np.ndarray:
    """The same array with NaN for infinities, in place."""
    image[~np.isfinite(image)] = np.nan
    return image


def _fine_ratio(image: np.ndarray, mean: np.ndarray, some: np.ndarray, lit: np.ndarray) -> np.ndarray:
    """Fine part of log(image / mean) in some pixels (flat indices), (k,)."""
    ratio = image.ravel()[some] / mean.ravel()[some] / np.exp(_broad_log_ratio(image, mean, lit).ravel()[some])
    return np.log(np.maximum(ratio, 1e-3))


def _robust_variance(values: np.ndarray) -> float:
    """Variance by the median absolute deviation."""
    return float((1.4826 * np.median(np.abs(values - np.median(values)))) ** 2)


def _quantile_plane(design: np.ndarray, seen: np.ndarray, quantile: float) -> np.ndarray:
    """Plane with the given share of the cells below it, by iteratively reweighted least squares."""
    plane = np.array([np.quantile(seen, quantile), 0.0, 0.0])
    floor = 1e-3 * max(float(np.ptp(seen)), 1e-6)
    for _ in range(20):
        rest = seen - design @ plane
        weight = np.where(rest > 0, quantile, 1 - quantile) / np.maximum(np.abs(rest), floor)
        plane = np.linalg.solve(design.T @ (design * weight[:, None]), design.T @ (seen * weight))
    return plane


def _background_cells(rest: np.ndarray, filled: np.ndarray) -> tuple[np.ndarray, float]:
    """Cells that are open background, and their scatter, told from particles by what lies below the mode."""
    known = rest[filled]
    mode = _mode(known)
    below = mode - known[known < mode]
    scatter = max(1.4826 * float(np.median(below)) if len(below) else 0.0, 1e-6)
    with np.errstate(invalid="ignore"):
        near = filled & (np.abs(rest - mode) < 3 * scatter)
        particle = filled & (rest - mode > 4 * scatter)
    # A particle's foot lies within the background's scatter; its neighbourhood is left out where enough is
    # left.
    for rings in (2, 1):
        clear = near & ~ndimage.binary_dilation(particle, np.ones((3, 3)), iterations=rings)
        if clear.sum() >= max(16, FEWEST_CELLS * filled.sum()):
            return clear, scatter
    return near, scatter


def _mode(values: np.ndarray) -> float:
    """Most frequent value near the lower end: of the lower 60 %, the middle of the shortest quarter (of a half)."""
    low = np.sort(values)[: max(8, int(0.6 * len(values)))]
    for _ in range(2):
        half = (len(low) + 1) // 2
        start = int(np.argmin(low[half - 1 :] - low[: len(low) - half + 1]))
        low = low[start : start + half]
    return float(np.median(low))
