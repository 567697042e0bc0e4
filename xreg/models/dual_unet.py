"""The Dual U-Net that turns a region of interest into one soft contour.

Two networks of one structure, a low- and a high-epoch checkpoint of one training, and the mean of what they say
(Su et al. 2024, section 2.2.1 and S1). One network: four stride-2 down-samplings, four interpolating up-samplings,
eighteen 3x3 convolutions and one fully connected layer per pixel.

The input has three channels: the region's optical density scaled to its own contrast, the particle map with all
other regions taken out (it says which of several particles is meant), and where the detector was valid.
"""

from dataclasses import dataclass

import torch
from torch import nn

from xreg.models.blocks import convolution


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a U-Net: input channels, and channels of the first of its five levels (each level doubles)."""

    inputs: int = 3
    width: int = 8


class UNet(nn.Module):
    """Logit of "inside the contour" for each pixel; (B, 3, H, W) to (B, 1, H, W), H and W multiples of 16."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        levels = [config.width * 2**k for k in range(5)]
        self.down = nn.ModuleList(
            nn.Sequential(convolution(i, o, stride=1 if k == 0 else 2), convolution(o, o))
            for k, (i, o) in enumerate(zip([config.inputs, *levels[:-1]], levels, strict=True))
        )
        self.up = nn.ModuleList(
            nn.Sequential(convolution(low + high, high), convolution(high, high))
            for low, high in zip(levels[:0:-1], levels[-2::-1], strict=True)
        )
        self.enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.last = nn.Conv2d(levels[0], 1, 1)

    def forward(self, region: torch.Tensor) -> torch.Tensor:
        kept = []
        x = region
        for level in self.down:         # 2 convolutions each: 10
            x = level(x)
            kept.append(x)              # (B, w 2^k, H/2^k, W/2^k)
        for level, skip in zip(self.up, kept[-2::-1], strict=True):     # 2 convolutions each: 8
            x = level(torch.cat([self.enlarge(x), skip], dim=1))
        return self.last(x)             # (B, 1, H, W)


class DualUNet(nn.Module):
    """Mean probability of a low-epoch and a high-epoch U-Net; (B, 3, H, W) to (B, 1, H, W)."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        self.low = UNet(config)
        self.high = UNet(config)

    def forward(self, region: torch.Tensor) -> torch.Tensor:
        return (torch.sigmoid(self.low(region)) + torch.sigmoid(self.high(region))) / 2


def probability(network: UNet | DualUNet, region: torch.Tensor) -> torch.Tensor:
    """Probability of "inside the contour", as one network or both say; (B, 3, H, W) to (B, 1, H, W)."""
    return network(region) if isinstance(network, DualUNet) else torch.sigmoid(network(region))
