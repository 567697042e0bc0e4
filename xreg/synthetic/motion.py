"""Motion of stage and particles, and which frames are spoilt."""

import numpy as np

from xreg.schema import FrameStatus
from xreg.synthetic.config import PhantomConfig


def draw_motion(c: PhantomConfig, n_particles: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rigid motion (frame, axis) and each particle's own motion (particle, frame, axis), px, zero in frame 0.

    The first particle has no motion of its own, as the black curves of the paper's Fig. 3.
    """
    n = c.n_frames
    steps = c.walk * rng.standard_normal((n, 2))
    rigid = np.cumsum(steps, axis=0) + c.jitter * rng.standard_normal((n, 2))
    for _ in range(rng.poisson(c.jumps * c.n_scans) if n > 1 else 0):
        rigid[rng.integers(1, n):] += rng.uniform(-12, 12, 2)
    # A stage is brought back before the sample leaves the field of view.
    room = 0.06 * min(c.shape)
    rigid = room * np.tanh((rigid - rigid[0]) / room)
    time = np.arange(n) / max(len(c.energies), 1)
    own = np.zeros((n_particles, n, 2))
    for wave in range(4):
        rate = rng.uniform(0.3, 1 + wave, (n_particles, 1, 2)) / 2
        phase = rng.uniform(0, 2 * np.pi, (n_particles, 1, 2))
        size = rng.normal(0, 1 / (1 + wave), (n_particles, 1, 2))
        own += size * (np.sin(2 * np.pi * rate * time[:, None] + phase) - np.sin(phase))
    own *= c.deformation / 2
    if c.deformation:
        own = 2.5 * c.deformation * np.tanh(own / (2.5 * c.deformation))
    own[:1] = 0
    return rigid, own


def draw_status(c: PhantomConfig, rng: np.random.Generator) -> np.ndarray:
    """Status of every frame: a share of `bad_frames`, never the first, is blank, blurred or corrupt."""
    kinds = [FrameStatus.BLANK, FrameStatus.BLURRED, FrameStatus.CORRUPT]
    bad = rng.random(c.n_frames) < c.bad_frames
    bad[:1] = False
    return np.where(bad, rng.choice(kinds, c.n_frames), FrameStatus.OK).astype(np.int8)
