"""Training of the CycleGAN that finds particles.

    xreg train detect runs/detector                     about an hour on two CPU cores
    xreg train detect runs/detector --preset gpu        the full training
    xreg train detect runs/detector --frames RAW        adapts to your own frames; nothing is annotated

Least-squares adversarial, cycle and identity losses as in Zhu et al. 2017 (doi:10.1109/ICCV.2017.244), with their pool
of earlier translations. Added to it: where a frame is simulated, its clean picture is known, and a paired loss holds
the generator to it. An unpaired CycleGAN is free to move, fuse or invent particles as long as it can undo it; the
paired loss takes this freedom away, and acts alone in the first steps, which are several times cheaper than the full
game. With `paired=0` and `warm_up=0` the training is the plain CycleGAN.
"""

import random
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch.nn import functional

from xreg.models.cyclegan import Discriminator, Generator, GeneratorConfig
from xreg.models.infer import bin_frame, choose_device, compress
from xreg.models.weights import Weights, read, save
from xreg.training.data import detection_pair
from xreg.training.run import TrainingRun, augment, average_weights, go_on_from, simulate
from xreg.training.scenes import FRAME_SIDE


@dataclass(frozen=True)
class DetectorConfig:
    """Settings of one training of the detector."""

    frames: int = 600               # simulated frames
    warm_up: int = 1700             # first steps, in which only the paired loss acts
    steps: int = 2200
    batch: int = 4
    width: int = 16
    rate: float = 1e-3              # of the generators; falls to zero along half a cosine
    judge_rate: float = 2e-4        # of the discriminators
    cycle: float = 2.0
    identity: float = 1.0           # fades out over the first half
    paired: float = 20.0            # 0: the plain, unpaired CycleGAN
    own_share: float = 0.5          # share of a batch that is the user's own frames, where given
    pool: int = 50
    workers: int = 2
    seed: int = 0


PRESETS = {
    "cpu": DetectorConfig(),
    "gpu": DetectorConfig(frames=6000, warm_up=4000, steps=12000, batch=16, workers=16),
}


class PicturePool:
    """Earlier translations, shown to a discriminator in place of half of the new ones (Zhu et al. 2017, section 4)."""

    def __init__(self, size: int, seed: int):
        self.size, self.kept, self.random = size, [], random.Random(seed)

    def swap(self, pictures: torch.Tensor) -> torch.Tensor:
        """Store the pictures; return as many, some of them old."""
        shown = []
        for picture in pictures.detach():
            if len(self.kept) < self.size:
                self.kept.append(picture)
            elif self.random.random() < 0.5:
                k = self.random.randrange(self.size)
                picture, self.kept[k] = self.kept[k], picture
            shown.append(picture)
        return torch.stack(shown)


def train_detector(
    folder: str | Path, config: DetectorConfig, *, device: str = "auto", own_frames: list[np.ndarray] | None = None,
    start: Weights | None = None, command: str = "xreg train detect",
) -> Weights:
    """Train the detector; go on where an earlier call in the same folder stopped.

    Parameters
    ----------
    folder : path
        Takes settings, log, sample pictures, checkpoint, and in the end `detector.safetensors`.
    config : DetectorConfig
        Settings.
    device : str
        "auto", "cpu" or "cuda".
    own_frames : list of ndarray, each (H, W), optional
        Normalised frames (optical density, NaN where invalid) to adapt to, without annotations.
    start : Weights, optional
        Of an earlier detector of the same width to go on from; by default the training starts from nothing.
    command : str
        What the user typed; goes on the model card.

    Returns
    -------
    Weights
        Of the frames-to-pictures generator (running average over the training).
    """
    device = choose_device(device)
    run = TrainingRun(folder, config, device)
    frames, pictures = _simulated(config, device)
    own = [torch.from_numpy(np.asarray(f, np.float32)) for f in own_frames or []]

    clean = Generator(GeneratorConfig(config.width)).to(device)                     # A -> B, the one that is used
    dirty = Generator(GeneratorConfig(config.width // 2, bounded=False)).to(device)      # B -> A
    judge_a, judge_b = Discriminator().to(device), Discriminator().to(device)
    if start:
        go_on_from(read(start), clean)
    # Channels last take two thirds of the time on a CPU.
    clean = clean.to(memory_format=torch.channels_last)
    average = deepcopy(clean).eval()
    generators = torch.optim.Adam(chain(clean.parameters(), dirty.parameters()), config.rate, betas=(0.5, 0.999))
    judges = torch.optim.Adam(chain(judge_a.parameters(), judge_b.parameters()), config.judge_rate, betas=(0.5, 0.999))
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(generators, config.steps)
    parts = {"clean": clean, "dirty": dirty, "judge_a": judge_a, "judge_b": judge_b, "average": average,
             "generators": generators, "judges": judges, "fall": fall}
    first = run.resume(**parts)
    pools = PicturePool(config.pool, config.seed), PicturePool(config.pool, config.seed + 1)

    for step in track(range(first, config.steps), "training the detector", total=config.steps - first):
        # A batch of frames, their clean pictures where known, and unrelated clean pictures as domain B.
        a, truth, known = _batch(frames, pictures, own, config, device)
        b = augment(pictures[_draw(len(pictures), config.batch, device)].float()[:, None])[0]

        with run.autocast():
            fake_b = clean(a.contiguous(memory_format=torch.channels_last))
            paired = ((fake_b - truth).abs().mean((1, 2, 3)) * known).sum() / known.sum().clamp(min=1)
            loss = config.paired * paired
            numbers = {"paired": paired}
            if step >= config.warm_up:
                fake_a = dirty(b)
                adversarial = _fooled(judge_b(fake_b)) + _fooled(judge_a(fake_a))
                cycle = functional.l1_loss(dirty(fake_b), a) + functional.l1_loss(clean(fake_a), b)
                fade = max(0.0, 1 - 2 * (step - config.warm_up) / (config.steps - config.warm_up))
                identity = functional.l1_loss(clean(b), b) + functional.l1_loss(dirty(a), a) if fade else 0.0
                loss = loss + adversarial + config.cycle * cycle + config.identity * fade * identity
                numbers |= {"adversarial": adversarial, "cycle": cycle}
        generators.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clean.parameters(), 5.0)
        generators.step()

        if step >= config.warm_up:
            with run.autocast():
                told = _told_apart(judge_b, b, pools[0].swap(fake_b)) + _told_apart(judge_a, a, pools[1].swap(fake_a))
            judges.zero_grad()
            told.backward()
            judges.step()
            numbers["told_apart"] = told

        average_weights(average, clean, min(0.999, step / (step + 20)))
        fall.step()
        if step % max(config.steps // 60, 1) == 0 or step == config.steps - 1:
            run.log(step, **numbers)
        if step % max(config.steps // 10, 1) == 0 or step == config.steps - 1:
            run.picture(step, a, average(a), truth, b, dirty(b))
            run.save(step + 1, **parts)

    card = {"network": "CycleGAN generator, frames to clean particle pictures", "command": command,
            "settings": run.settings, "own frames": len(own), "started from": start.sha256 if start else "nothing",
            "hardware": run.hardware, "minutes": run.minutes}
    return save(average, run.folder / "detector.safetensors", card)


def _simulated(config: DetectorConfig, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Simulated frames (N, H, W) at full resolution and their clean pictures, binned as the network sees them."""
    seeds = range(config.seed * 1_000_003, config.seed * 1_000_003 + config.frames)
    pairs = simulate(detection_pair, seeds, config.workers, "simulating frames")
    frames = torch.from_numpy(np.stack([f for f, _ in pairs])).to(device)
    pictures = torch.from_numpy(np.stack([p for _, p in pairs]))
    binned = torch.cat([bin_frame(part.float()[:, None]).half()[:, 0] for part in pictures.split(64)])
    return frames, binned.to(device)


def _draw(n: int, count: int, device: str) -> torch.Tensor:
    return torch.randint(n, (count,)).to(device)


def _batch(frames, pictures, own, config, device):
    """Compressed, binned frames (B, 1, h, w), their clean pictures, and 1 where the clean picture is known."""
    n_own = round(config.batch * config.own_share) if own else 0
    chosen = _draw(len(frames), config.batch, device)
    a, truth = frames[chosen].float()[:, None], pictures[chosen].float()[:, None]
    known = torch.ones(config.batch, device=device)
    for k in range(n_own):
        a[k, 0] = _crop(own[int(torch.randint(len(own), ()))]).to(device)
        known[k] = 0
    # Contrast differs between materials and energies: brightness and contrast are drawn anew each time.
    gain = torch.exp(torch.empty(config.batch, 1, 1, 1).uniform_(-0.5, 0.5)).to(device)
    noise = torch.empty(config.batch, 1, 1, 1).uniform_(0, 1).pow(4).mul(0.3).to(device)
    a = a * gain + noise * torch.randn(a.shape, device=device)
    a, truth = augment(compress(bin_frame(a)), truth)
    return a, truth, known


def _crop(frame: torch.Tensor) -> torch.Tensor:
    """A random square of the training size, mirrored where the frame is smaller."""
    for axis in (0, 1):
        while frame.shape[axis] < FRAME_SIDE:
            frame = torch.cat([frame, frame.flip(axis)], dim=axis)
    y, x = (int(torch.randint(n - FRAME_SIDE + 1, ())) for n in frame.shape)
    return frame[y:y + FRAME_SIDE, x:x + FRAME_SIDE]


def _fooled(verdict: torch.Tensor) -> torch.Tensor:
    """Least-squares loss of a generator."""
    return ((verdict.float() - 1) ** 2).mean()


def _told_apart(judge: torch.nn.Module, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Least-squares loss of a discriminator."""
    return ((judge(real).float() - 1) ** 2).mean() / 2 + (judge(fake).float() ** 2).mean() / 2
