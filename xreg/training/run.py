"""What both training loops share: settings on disk, checkpoints, log, sample pictures, data simulated by processes."""

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from rich.progress import track


class TrainingRun:
    """A folder that holds one training: settings, log, sample pictures, and the last checkpoint.

    Parameters
    ----------
    folder : path
        Made if need be. A folder that holds a training of the same settings is taken up where it stopped.
    config : frozen dataclass
        All settings; saved as JSON and in the checkpoint.
    device : str
        "cpu" or "cuda".

    Raises
    ------
    ValueError
        If the folder holds a training of other settings.
    """

    def __init__(self, folder: str | Path, config, device: str):
        self.folder, self.config, self.device = Path(folder), config, device
        self.folder.mkdir(parents=True, exist_ok=True)
        self.settings = json.loads(json.dumps(asdict(config)))
        place = self.folder / "config.json"
        if place.exists() and json.loads(place.read_text()) != self.settings:
            msg = (f"{self.folder} holds a training with other settings; "
                   "give another folder, or the same settings to go on with it.")
            raise ValueError(msg)
        place.write_text(json.dumps(self.settings, indent=1))
        self.started = time.monotonic()
        torch.manual_seed(config.seed)
        torch.backends.cudnn.benchmark = device == "cuda"

    def autocast(self) -> torch.autocast:
        """Mixed precision on CUDA, and on CPUs that multiply bfloat16 themselves: six tenths of the time."""
        # Older versions of torch do not tell what a CPU can.
        able = getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16", False)
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.device == "cuda" or able)

    @property
    def hardware(self) -> str:
        """What the training ran on, for the model card."""
        return torch.cuda.get_device_name() if self.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"

    @property
    def minutes(self) -> float:
        """Time since the training was started or taken up again."""
        return round((time.monotonic() - self.started) / 60, 1)

    def resume(self, **parts) -> int:
        """Load modules and optimizers from the last checkpoint; return the step to go on with (0 without one).

        Raises ValueError if the checkpoint holds other parts.
        """
        place = self.folder / "checkpoint.pt"
        if not place.exists():
            return 0
        state = torch.load(place, map_location=self.device, weights_only=True)
        if not parts.keys() <= state.keys():
            msg = f"{place} is of another version of xreg, which cannot be gone on with; give another folder."
            raise ValueError(msg)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["random"].cpu())
        return state["step"]

    def save(self, step: int, **parts) -> None:
        """Replace the checkpoint in one move, so that a kill leaves the old one or the new one."""
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= {"step": step, "random": torch.get_rng_state(), "config": self.settings}
        fresh = self.folder / "checkpoint.pt.partial"
        torch.save(state, fresh)
        os.replace(fresh, self.folder / "checkpoint.pt")

    def log(self, step: int, **numbers: float) -> None:
        """Append one line to log.jsonl: a step, the seconds since the start, and numbers by name."""
        row = {"step": step, "seconds": round(time.monotonic() - self.started, 1)}
        row |= {k: round(float(v.detach() if torch.is_tensor(v) else v), 6) for k, v in numbers.items()}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def picture(self, step: int, *rows: torch.Tensor) -> None:
        """Save rows of sample pictures (each (B, 1, H, W)) as one PNG, each picture stretched to its own range."""
        from skimage.io import imsave

        tiles = []
        for row in rows:
            x = row[:8, 0].detach().float().cpu().numpy()
            low, high = (np.percentile(x, q, axis=(1, 2), keepdims=True) for q in (1, 99))
            tiles.append(np.concatenate(list(np.clip((x - low) / np.maximum(high - low, 0.2), 0, 1)), axis=1))
        imsave(self.folder / f"sample-{step:06d}.png", (255 * np.concatenate(tiles)).astype(np.uint8),
               check_contrast=False)


def go_on_from(earlier: torch.nn.Module, network: torch.nn.Module) -> None:
    """Give a network the weights of an earlier one of the same settings.

    Raises
    ------
    ValueError
        If its settings are others.
    """
    if earlier.config != network.config:
        msg = (f"the weights to go on from are of a {earlier.config}, this training is of a {network.config}; "
               "give weights of the same settings.")
        raise ValueError(msg)
    network.load_state_dict(earlier.state_dict())


def average_weights(average: torch.nn.Module, network: torch.nn.Module, decay: float) -> None:
    """Move a running average of a network's weights (and normalisation statistics) towards the network."""
    with torch.no_grad():
        for kept, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
            if kept.dtype.is_floating_point:
                kept.lerp_(new, 1 - decay)
            else:
                kept.copy_(new)


def simulate(function: Callable, seeds: Iterable[int], workers: int, what: str) -> list:
    """Call a function of a seed for many seeds in processes, with a progress bar; results in the order of the seeds."""
    seeds = list(seeds)
    if workers <= 1:
        return [function(seed) for seed in track(seeds, what)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(track(pool.map(function, seeds, chunksize=4), what, total=len(seeds)))


def augment(*pictures: torch.Tensor) -> list[torch.Tensor]:
    """Turn and mirror a batch, all pictures alike."""
    turns, flip = int(torch.randint(4, ())), bool(torch.randint(2, ()))
    turned = [torch.rot90(p, turns, (2, 3)) for p in pictures]
    return [p.flip(3) if flip else p for p in turned]
