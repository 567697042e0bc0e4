"""Networks applied to arrays: numpy in, numpy out, one `device` argument. Tensors never leave this file.

Every frame is one batch of its own for detection, and its regions one batch for refinement, so that no answer can
depend on how frames were grouped into chunks.
"""

import threading
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch.nn import functional

from xreg.models.dual_unet import probability
from xreg.models.weights import Weights, load

#: Detection looks at frames binned by this factor.
BINNING = 3
#: Optical density at which the detector's input turns from linear to logarithmic.
KNEE = 0.1
_gpu = threading.Lock()


def choose_device(device: str = "auto") -> str:
    """Resolve "auto" to "cuda" where there is one, else "cpu".

    Raises
    ------
    ValueError
        If the device is unknown, or "cuda" was asked for and there is none.
    """
    if device not in ("auto", "cpu", "cuda"):
        msg = f"device is {device!r}; need one of auto, cpu, cuda."
        raise ValueError(msg)
    if device == "cuda" and not torch.cuda.is_available():
        msg = "device is 'cuda', but torch sees no CUDA device here; use device='cpu' or 'auto'."
        raise ValueError(msg)
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def compress(optical_density: torch.Tensor) -> torch.Tensor:
    """asinh(optical density / KNEE): faint and bright particles in one range, without scaling by the frame itself."""
    return torch.asinh(optical_density / KNEE)


def bin_frame(frame: torch.Tensor) -> torch.Tensor:
    """Mean of the valid pixels of each 3x3 block, (B, 1, H, W) to (B, 1, ceil(H/3), ceil(W/3)); no valid pixel: 0."""
    valid = torch.isfinite(frame).to(frame.dtype)
    total = functional.avg_pool2d(torch.nan_to_num(frame), BINNING, ceil_mode=True, count_include_pad=False)
    share = functional.avg_pool2d(valid, BINNING, ceil_mode=True, count_include_pad=False)
    return total / share.clamp(min=0.25)


#: Binned pixels on the shorter side of the smallest frame that the generator takes.
_LEAST_SIDE = 48


def particle_map(optical_density: np.ndarray, weights: Weights, device: str) -> np.ndarray:
    """Clean particle picture of one frame.

    Parameters
    ----------
    optical_density : ndarray, shape (H, W), float32
        Optical density above the background; NaN where invalid.
    weights : Weights
        Of a CycleGAN generator.
    device : str
        "cpu" or "cuda".

    Returns
    -------
    ndarray, shape (H, W), float32
        0 outside particles, rising to 1 at the middle of each. Same size as the input.
    """
    network = load(weights, device)
    assert not network.training
    height, width = optical_density.shape
    with _exclusive(device), torch.inference_mode():
        frame = torch.from_numpy(np.ascontiguousarray(optical_density, dtype=np.float32)).to(device)[None, None]
        x = compress(bin_frame(frame))                                          # (1, 1, h, w)
        h, w = x.shape[-2:]
        # A multiple of four, and no less than the network's own padding can be mirrored from.
        x = functional.pad(x, (0, max(-w % 4, _LEAST_SIDE - w), 0, max(-h % 4, _LEAST_SIDE - h)), mode="replicate")
        x = network(x)[..., :h, :w]
        x = functional.interpolate(x, scale_factor=BINNING, mode="bilinear", align_corners=False)
        return x[0, 0, :height, :width].cpu().numpy()


def soft_contours(regions: np.ndarray, weights: Weights, device: str) -> np.ndarray:
    """Soft contours of one frame's regions of interest.

    Parameters
    ----------
    regions : ndarray, shape (n, 3, N, N), float32
        Scaled optical density, particle map and validity of each region.
    weights : Weights
        Of a Dual U-Net, or of one U-Net.
    device : str
        "cpu" or "cuda".

    Returns
    -------
    ndarray, shape (n, N, N), float32
        Probability (0 to 1) that a sample lies inside the contour.
    """
    network = load(weights, device)
    assert not network.training
    with _exclusive(device), torch.inference_mode():
        x = torch.from_numpy(np.ascontiguousarray(regions, dtype=np.float32))
        x = x.to(memory_format=torch.channels_last)
        return _in_memory(partial(probability, network), x, device).numpy()[:, 0]


def _in_memory(network: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, device: str) -> torch.Tensor:
    """Apply a network; where the device's memory is too small, halve the batch until it fits."""
    size = len(x)
    while True:
        try:
            return torch.cat([network(part.to(device)).cpu() for part in x.split(size)])
        except torch.cuda.OutOfMemoryError:
            if size == 1:
                raise
        # Memory held by the failed attempt is free only once its exception is gone.
        torch.cuda.empty_cache()
        size = size // 2


class _exclusive:
    """Let one thread at a time use the GPU, so that others can read and prepare; the CPU is shared freely."""

    def __init__(self, device: str):
        self.lock = _gpu if device == "cuda" else None

    def __enter__(self):
        if self.lock:
            self.lock.acquire()

    def __exit__(self, *_):
        if self.lock:
            self.lock.release()
