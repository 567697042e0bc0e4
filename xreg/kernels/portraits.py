"""What a particle looks like: one picture from many windows, in each of which it has a contrast of its own."""

import numpy as np
from scipy import ndimage

from xreg.kernels.layers import Sprite
from xreg.kernels.subpixel import RIM
from xreg.kernels.waves import filtered, wiener_shares

#: Particles end softly, so many px beyond their outlines.
_SOFT = 4
#: What less than this part of the windows shows is not known: its end would pass for an edge of the particle.
_LEAST_KNOWN = 0.3


class Portrait:
    """One particle on some frames: its outline and picture, its contrast in each frame."""

    def __init__(self, contour: np.ndarray):
        far = np.abs(np.argwhere(contour) - contour.shape[-1] // 2).max(initial=0) + RIM + _SOFT
        self.half = int(min(far, contour.shape[-1] // 2))
        middle, self.whole = contour.shape[-1] // 2, contour.shape
        self.crop = (slice(middle - self.half, middle + self.half + 1),) * 2
        self.contour = contour[self.crop]
        self.rim = ndimage.binary_dilation(self.contour, iterations=3)
        self.support = ndimage.gaussian_filter(
            ndimage.binary_dilation(self.contour, iterations=_SOFT).astype(np.float32), 1)
        self.side = 2 * self.half + 1
        self.picture: np.ndarray | None = None
        self.sprite: Sprite | None = None
        self.contrast = np.zeros(0)
        self.known = np.ones(self.contour.shape, bool)

    def show(self, picture: np.ndarray) -> None:
        """Take a picture for the particle's."""
        self.picture, self.sprite = picture, Sprite.of(picture)

    def begin(self, windows: np.ndarray) -> None:
        """First contrasts (n,), and a picture as the part of the windows (n, h, w) that changes with the contrast."""
        inner = ndimage.binary_erosion(self.contour, iterations=2)
        inner = inner if inner.any() else self.contour
        around = ndimage.binary_dilation(self.rim, iterations=3) & ~self.rim
        contrast = np.full(len(windows), np.nan)
        for k, window in enumerate(windows):
            inside, outside = (window[m][np.isfinite(window[m])] for m in (inner, around))
            if inside.size > 0.5 * inner.sum() and outside.size > 0.2 * around.sum():
                contrast[k] = inside.mean() - np.median(outside)
                windows[k] -= np.float32(np.median(outside))
        self.contrast = np.full(len(windows), np.nan)
        seen = np.flatnonzero(contrast > 0)
        if not seen.size:
            return
        self.contrast[seen] = contrast[seen] / np.quantile(contrast[seen], 0.75)
        self.show(_changing_part(windows[seen], self.contrast[seen]) * self.support)

    def fit(self, windows: np.ndarray) -> None:
        """Contrast of each window (n, h, w), then the picture that fits them all."""
        seen = np.flatnonzero(np.isfinite(self.contrast))
        for k in seen:
            used = self.rim & np.isfinite(windows[k])
            ours = self.picture[used].astype(float)
            self.contrast[k] = (ours @ windows[k][used]) / max(ours @ ours, 1e-12)
        contrast = np.maximum(self.contrast[seen], 0.02)
        self.contrast[seen] = contrast / np.quantile(contrast, 0.75)
        share = np.where(np.isfinite(windows[seen]), self.contrast[seen][:, None, None], 0).astype(np.float32)
        shown = share * np.nan_to_num(windows[seen]) * self.support
        sums, weights = (np.array([a[half::2].sum(0) for half in (0, 1)]) for a in (shown, share**2))
        weight = weights.sum(0)
        self.known = weight >= _LEAST_KNOWN * weight.max()
        total = sums.sum(0) / np.maximum(weight, 1e-6)
        # Waves in which every other window says something else are noise, and a template's noise is taken for slopes.
        self.show(filtered(total, wiener_shares(total, sums, weights, self.support > 0)))

    def known_picture(self) -> np.ndarray:
        """The picture, NaN where it is hardly seen, as where the field of view always cuts the particle."""
        return np.where(self.known, self.picture, np.float32(np.nan))

    def full_picture(self) -> np.ndarray:
        """The known picture in the window of all particles; all NaN if never seen."""
        if self.picture is None:
            return np.full(self.whole, np.nan, np.float32)
        full = np.zeros(self.whole, np.float32)
        full[self.crop] = self.known_picture()
        return full


def _changing_part(windows: np.ndarray, contrast: np.ndarray) -> np.ndarray:
    """The part of windows (n, h, w) that is proportional to the contrast (n,), whatever stays the same."""
    spread = contrast - contrast.mean()
    if (spread**2).sum() < 0.02 * len(contrast):        # nothing changes: all of it is the particle
        spread = contrast
    weight = np.where(np.isfinite(windows), spread[:, None, None], 0)
    return ((weight * np.nan_to_num(windows)).sum(0) / np.maximum((weight**2).sum(0), 1e-6)).astype(np.float32)
