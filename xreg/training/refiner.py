"""Training of the Dual U-Net that turns regions into single contours.

    xreg train refine runs/refiner                      about half an hour on two CPU cores
    xreg train refine runs/refiner --preset gpu         the full training

One U-Net is trained once. Its running average is kept at a low and at a high number of epochs, and the two make the
Dual U-Net (Su et al. 2024, S1). The regions are those that the detector finds in simulated frames; the target is the
true outline as the share of each pixel that it covers. Beyond the paper: a loss on the centre of mass itself, since
that is what registers a particle.
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch.nn import functional

from xreg.models.dual_unet import DualUNet, UNet, UNetConfig, probability
from xreg.models.infer import choose_device, particle_map
from xreg.models.weights import Weights, read, save, shipped
from xreg.training.data import refinement_samples
from xreg.training.run import TrainingRun, augment, average_weights, go_on_from, simulate


@dataclass(frozen=True)
class RefinerConfig:
    """Settings of one training of the refiner."""

    frames: int = 450               # simulated frames, each of several regions
    epochs: int = 20
    low_epoch: int = 5
    batch: int = 32
    width: int = 8
    rate: float = 2e-3              # falls to zero along half a cosine
    dice: float = 1.0
    centre: float = 0.5             # weight of the centre of mass, per sample spacing
    held_out: float = 0.1           # share of regions that is validated on
    workers: int = 2
    seed: int = 1


PRESETS = {
    "cpu": RefinerConfig(),
    "gpu": RefinerConfig(frames=5000, epochs=80, low_epoch=12, batch=256, rate=4e-3, workers=16),
}


def train_refiner(
    folder: str | Path, config: RefinerConfig, *, device: str = "auto", detector: Weights | None = None,
    start: Weights | None = None, command: str = "xreg train refine",
) -> Weights:
    """Train the Dual U-Net on what a detector finds; go on where an earlier call in the same folder stopped.

    Parameters
    ----------
    folder : path
        Takes settings, log (the validation curve over epochs), sample pictures, checkpoint, and in the end
        `refiner.safetensors`.
    config : RefinerConfig
        Settings.
    device : str
        "auto", "cpu" or "cuda".
    detector : Weights, optional
        Of the detector whose regions are refined; the shipped one by default.
    start : Weights, optional
        Of an earlier Dual U-Net of the same width, whose high-epoch network is trained further; by default the training
        starts from nothing.
    command : str
        What the user typed; goes on the model card.

    Returns
    -------
    Weights
        Of the Dual U-Net.
    """
    device = choose_device(device)
    run = TrainingRun(folder, config, device)
    detector = detector or shipped("detector")
    samples = simulate_regions(config, detector, device)
    n_held = max(int(len(samples[0]) * config.held_out), 1)
    held, shown = [part[:n_held] for part in samples], [part[n_held:] for part in samples]

    network = UNet(UNetConfig(width=config.width))
    if start:
        earlier = read(start)
        go_on_from(earlier.high if isinstance(earlier, DualUNet) else earlier, network)
    kept = fit_network(network, shown, held, config, run, (config.low_epoch, config.epochs))

    both = DualUNet(UNetConfig(width=config.width))
    low, high = kept[config.low_epoch], kept[config.epochs]
    both.low.load_state_dict(low.state_dict())
    both.high.load_state_dict(high.state_dict())
    both = both.to(device).eval()
    card = {"network": "Dual U-Net, regions of interest to contours", "command": command, "settings": run.settings,
            "detector": detector.sha256, "started from": start.sha256 if start else "nothing",
            "regions": len(samples[0]), "hardware": run.hardware, "minutes": run.minutes,
            "held-out regions": {"low": validate(low, *held), "high": validate(high, *held),
                                 "fused": validate(both, *held)}}
    return save(both.cpu(), run.folder / "refiner.safetensors", card)


def fit_network(
    network: UNet, regions: list[torch.Tensor], held: list[torch.Tensor], config: RefinerConfig, run: TrainingRun,
    keep: tuple[int, ...],
) -> dict[int, UNet]:
    """Train one U-Net in the folder of a run; its running average as it was after each of the epochs `keep`.

    `regions`, to be trained on, and `held`, to be validated on, are pictures (N, 3, n, n), true contours (N, n, n) and
    sample spacings (N,).
    """
    pictures, contours, _ = regions
    # Channels last take two thirds of the time on a CPU.
    network = network.to(run.device, memory_format=torch.channels_last)
    average = deepcopy(network).eval()
    kept = torch.nn.ModuleDict({str(epoch): deepcopy(average) for epoch in keep})
    optimizer = torch.optim.AdamW(network.parameters(), config.rate, weight_decay=1e-3)
    steps = max(len(pictures) // config.batch, 1)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps * config.epochs)
    parts = {"network": network, "average": average, "kept": kept, "optimizer": optimizer, "fall": fall}
    first = run.resume(**parts)

    for epoch in track(range(first, config.epochs), "training the refiner", total=config.epochs - first):
        network.train()
        order = torch.randperm(len(pictures))
        for step in range(steps):
            chosen = order[step * config.batch:(step + 1) * config.batch].to(run.device)
            x, target = augment(pictures[chosen].float(), contours[chosen].float()[:, None])
            with run.autocast():
                logit = network(x.contiguous(memory_format=torch.channels_last))
            loss = contour_loss(logit.float(), target, config)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            fall.step()
            average_weights(average, network, min(0.998, (epoch * steps + step) / (epoch * steps + step + 20)))

        run.log(epoch + 1, loss=loss, **validate(average, *held))
        if epoch + 1 in keep:
            kept[str(epoch + 1)].load_state_dict(average.state_dict())
        if (epoch + 1) % max(config.epochs // 10, 1) == 0 or epoch + 1 == config.epochs:
            with torch.inference_mode():
                shown = probability(average, held[0][:8].float())
            run.picture(epoch + 1, held[0][:8, :1], held[0][:8, 1:2], shown, held[1][:8, None])
            run.save(epoch + 1, **parts)
    return {epoch: kept[str(epoch)] for epoch in keep}


def contour_loss(logit: torch.Tensor, target: torch.Tensor, config: RefinerConfig) -> torch.Tensor:
    """Cross entropy, soft Dice, and distance of the centres of mass in samples; (B, 1, H, W) each."""
    entropy = functional.binary_cross_entropy_with_logits(logit, target)
    inside = torch.sigmoid(logit)
    dice = 1 - (2 * (inside * target).sum((1, 2, 3)) + 1) / (inside.sum((1, 2, 3)) + target.sum((1, 2, 3)) + 1)
    miss = functional.smooth_l1_loss(_centre(inside), _centre(target), beta=0.2)
    return entropy + config.dice * dice.mean() + config.centre * miss


def _centre(contour: torch.Tensor) -> torch.Tensor:
    """Centre of mass (B, 2) in samples."""
    mass = contour.sum((1, 2, 3)).clamp(min=1.0)
    y = torch.arange(contour.shape[2], device=contour.device, dtype=contour.dtype)
    x = torch.arange(contour.shape[3], device=contour.device, dtype=contour.dtype)
    return torch.stack([(contour.sum((1, 3)) * y).sum(1), (contour.sum((1, 2)) * x).sum(1)], dim=1) / mass[:, None]


def validate(network: torch.nn.Module, pictures: torch.Tensor, contours: torch.Tensor, spacing: torch.Tensor
             ) -> dict[str, float]:
    """Median intersection over union, and root mean square and median error of the centre (px), on held-out regions."""
    overlap, miss = [], []
    network.eval()
    with torch.inference_mode():
        for x, target, step in zip(pictures.split(256), contours.split(256), spacing.split(256), strict=True):
            inside, target = probability(network, x.float()), target.float()[:, None]
            both = ((inside > 0.5) & (target > 0.5)).sum((1, 2, 3))
            overlap.append(both / ((inside > 0.5) | (target > 0.5)).sum((1, 2, 3)).clamp(min=1))
            miss.append((_centre(inside) - _centre(target)).norm(dim=1) * step)
    overlap, miss = torch.cat(overlap), torch.cat(miss)
    return {"iou": float(overlap.median()), "rms_px": float(miss.square().mean().sqrt()),
            "median_px": float(miss.median())}


def simulate_regions(config: RefinerConfig, detector: Weights, device: str) -> list[torch.Tensor]:
    """Pictures (N, 3, n, n), true contours (N, n, n) and sample spacings (N,) on the device."""
    seeds = range(config.seed * 1_000_003, config.seed * 1_000_003 + config.frames)
    make = partial(refinement_samples, detector=partial(particle_map, weights=detector, device="cpu"))
    parts = simulate(make, seeds, config.workers, "simulating regions")
    if not sum(len(p[2]) for p in parts):
        msg = f"the detector found no region in {config.frames} simulated frames; give more frames or another detector."
        raise ValueError(msg)
    return [torch.from_numpy(np.concatenate(arrays)).to(device) for arrays in zip(*parts, strict=True)]
