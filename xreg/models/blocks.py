"""Parts that the networks are built from."""

import torch
from torch import nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions added to their input; dilation widens what they see at the same cost."""

    def __init__(self, channels: int, dilation: int = 1):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, padding_mode="reflect", bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, padding_mode="reflect", bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)  # (B, C, H, W)


def convolution(inputs: int, outputs: int, *, size: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, rectifier; keeps height and width at stride 1, halves them at stride 2."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, padding_mode="reflect", bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
