"""A particle's picture from noisy windows: nearer to the truth than their mean."""

import numpy as np
from scipy import ndimage

from xreg.kernels.portraits import Portrait


def test_noise_is_left_out_of_the_picture_and_structure_kept():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-26:27, -26:27]
    contour = np.hypot(y, x) < 16
    true = ndimage.gaussian_filter(contour * (0.8 + 0.1 * np.sin(x / 2.5)), 1.2)
    contrast = np.repeat([0.3, 1.0], 8)
    for noise, gain in ((0.01, 1.0), (0.2, 0.4)):
        windows = (contrast[:, None, None] * true + rng.normal(0, noise, (16, *true.shape))).astype(np.float32)
        portrait = Portrait(contour)
        inner = windows[:, portrait.crop[0], portrait.crop[1]]
        portrait.begin(inner.copy())
        portrait.fit(inner)
        mean = np.tensordot(contrast, inner, 1) / (contrast @ contrast) * portrait.support
        wanted = true[portrait.crop] * portrait.support
        slopes = [np.sqrt(np.mean(np.square(np.gradient(p - wanted)))) for p in (portrait.picture, mean)]
        assert slopes[0] < gain * slopes[1]
