"""Weights on disk: safetensors files, known by their sha256, loaded once per process.

A graph carries a `Weights` (a path and a hash), never a network; each process loads the file on first use. Pickles are
refused: reading one runs whatever code its author put in.

    python -m xreg.models.weights [FILE ...]        prints model cards; those of the shipped weights by default
"""

import hashlib
import json
import sys
import threading
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from xreg.models.cyclegan import Generator, GeneratorConfig
from xreg.models.dual_unet import DualUNet, UNet, UNetConfig

_SHIPPED = Path(__file__).parent / "shipped"
_NETWORKS = {
    "generator": (Generator, GeneratorConfig),
    "unet": (UNet, UNetConfig),
    "dual_unet": (DualUNet, UNetConfig),
}
_ROLES = {"detector": ("generator",), "refiner": ("dual_unet", "unet")}
_loaded: dict[tuple[str, str, str], nn.Module] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class Weights:
    """One file of weights: where it lies and the sha256 that it must have."""

    path: str
    sha256: str

    @classmethod
    def of(cls, path: str | Path, role: str | None = None) -> "Weights":
        """Weights of a file as it is now, for a role ("detector" or "refiner") if one is given.

        Raises
        ------
        ValueError
            If there is no such file, it is not in the safetensors format, or its network is not one for the role.
        """
        path = Path(path)
        if not path.is_file():
            msg = f"there are no weights at {path}; give the path of a .safetensors file that `xreg train` wrote."
            raise ValueError(msg)
        if path.suffix != ".safetensors":
            msg = f"weights {path.name} are not safetensors; other formats can run code and are refused."
            raise ValueError(msg)
        if role and _kind(path) not in _ROLES[role]:
            made = f"are those of a {_kind(path)}" if _kind(path) else "were not written by `xreg train`"
            msg = f"weights {path} {made}; need those of a {role}, a {' or '.join(_ROLES[role])}."
            raise ValueError(msg)
        return cls(str(path.absolute()), hashlib.sha256(path.read_bytes()).hexdigest())

    @classmethod
    def chosen(cls, given: "Weights | str | Path | None", role: str) -> "Weights":
        """Weights for a role: as given, of the file at a path (see `of`), or those that came with xreg."""
        if given is None:
            return shipped(role)
        return cls.of(given, role) if isinstance(given, str | Path) else given


def _kind(path: Path) -> str:
    """Kind of network in a safetensors file; nothing where it does not say."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return (file.metadata() or {}).get("kind", "")
    except SafetensorError:
        return ""


@cache
def shipped(name: str) -> Weights:
    """Weights that came with xreg: "detector" or "refiner"."""
    return Weights.of(_SHIPPED / f"{name}.safetensors")


def save(network: nn.Module, path: str | Path, card: dict[str, object]) -> Weights:
    """Write a network with its kind, its shape and a model card (plain values) into one safetensors file."""
    kind = next(k for k, (cls, _) in _NETWORKS.items() if type(network) is cls)
    metadata = {"kind": kind, "config": json.dumps(asdict(network.config)), "card": json.dumps(card)}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_model(network, str(path), metadata=metadata)
    return Weights.of(path)


def card(weights: Weights) -> dict[str, object]:
    """Model card stored in a file of weights."""
    with safe_open(weights.path, framework="pt") as file:
        return json.loads((file.metadata() or {}).get("card", "{}"))


def readable_card(weights: Weights) -> str:
    """Model card as text: how the weights were made, what was measured, what is known to fail."""
    lines = [f"{Path(weights.path).name}  sha256 {weights.sha256}"]

    def add(entries: dict, indent: int) -> None:
        for name, value in entries.items():
            if isinstance(value, dict):
                lines.append(f"{' ' * indent}{name}:")
                add(value, indent + 4)
            else:
                lines.append(f"{' ' * indent}{name}: {value}")

    add(card(weights), 2)
    return "\n".join(lines)


def load(weights: Weights, device: str) -> nn.Module:
    """Network of the given weights on a device, ready to be applied; loaded once per process.

    It is in evaluation mode, its batch normalisations are folded into the convolutions before them, and its arrays have
    channels last: the same answer to a few units of the last digit, in little more than half the time on a CPU.

    Raises
    ------
    ValueError
        If the file's sha256 is not the expected one, or the file is not one that xreg wrote.
    """
    key = (weights.path, weights.sha256, device)
    with _lock:
        if key not in _loaded:
            network = _fold_normalisation(read(weights).eval())
            _loaded[key] = network.to(device, memory_format=torch.channels_last)
        return _loaded[key]


def _fold_normalisation(network: nn.Module) -> nn.Module:
    """Fold every batch normalisation that follows a convolution into it."""
    for sequence in [m for m in network.modules() if isinstance(m, nn.Sequential)]:
        for k in range(len(sequence) - 1):
            if isinstance(sequence[k], nn.Conv2d) and isinstance(sequence[k + 1], nn.BatchNorm2d):
                sequence[k] = fuse_conv_bn_eval(sequence[k], sequence[k + 1])
                sequence[k + 1] = nn.Identity()
    return network


def read(weights: Weights) -> nn.Module:
    """Network of the given weights as it was trained, on the CPU.

    Raises
    ------
    ValueError
        As `load`.
    """
    # On another machine xreg, and what came with it, may lie elsewhere.
    here = (shipped(role) for role in _ROLES if not Path(weights.path).exists())
    weights = next((w for w in here if w.sha256 == weights.sha256), weights)
    found = Weights.of(weights.path).sha256
    if found != weights.sha256:
        msg = (f"weights {weights.path} have sha256 {found[:12]}..., need {weights.sha256[:12]}...; "
               "the file changed since the run was set up.")
        raise ValueError(msg)
    try:
        with safe_open(weights.path, framework="pt") as file:
            metadata = file.metadata() or {}
        cls, config_cls = _NETWORKS[metadata["kind"]]
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(metadata["config"]).items()}
        network = cls(config_cls(**settings))
        load_model(network, weights.path)
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
        msg = f"weights {weights.path} cannot be read ({error}); give a file that `xreg train` wrote."
        raise ValueError(msg) from error
    return network


if __name__ == "__main__":
    chosen = [Weights.of(path) for path in sys.argv[1:]] or [shipped("detector"), shipped("refiner")]
    print("\n\n".join(readable_card(weights) for weights in chosen))
