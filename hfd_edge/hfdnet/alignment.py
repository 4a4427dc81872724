"""Heterogeneous feature alignment: coarse maps are warped by a learned flow before they are merged.

Reconstructed from the paper's description (Gao & Dong, arXiv 2210.08988). The form of the flow follows the
flow alignment module of SFNet (Li et al., 2020) and AlignSeg (Huang et al., 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WarpMethod = Literal["grid_sample", "gather"]


def conv_bn_relu(inputs: int, outputs: int, *, kernel: int) -> nn.Sequential:
    """Convolution with 'same' padding, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def upsample(features: Tensor, *, size: Sequence[int]) -> Tensor:
    """Bilinear resampling to (rows, cols) with half-pixel centres; edges are clamped.

    `size` must be a whole multiple of the features' size: exported graphs then hold one constant factor
    instead of shape arithmetic.

    Raises:
        ValueError: it is no whole multiple.
    """
    rows, cols = int(features.shape[2]), int(features.shape[3])
    if size[0] % rows or size[1] % cols:
        raise ValueError(f"output {tuple(size)} is not a whole multiple of the map's size {(rows, cols)}")
    factors = [float(size[0] // rows), float(size[1] // cols)]
    return F.interpolate(features, scale_factor=factors, mode="bilinear", align_corners=False)


def sampling_grid(flow: Tensor) -> Tensor:
    """Where each output pixel looks, in coordinates from -1 to 1 over the image's outer edges.

    Half-pixel centres: x_j = (j + 0.5) * 2 / cols - 1, plus flow * (2 / cols, 2 / rows).

    Args:
        flow: Offsets (batch, 2, rows, cols) in output pixels: columns (right) first, then rows (down).
    Returns:
        float32 (batch, rows, cols, 2), x first. Never in half precision: bfloat16 would place a sample
        up to half a pixel off at 128 columns.
    """
    rows, cols = int(flow.shape[2]), int(flow.shape[3])
    # float64 until the positions are rounded once: they are constants of the exported graph.
    wide = {"dtype": torch.float64, "device": flow.device}
    x = (torch.arange(cols, **wide) + 0.5) * (2.0 / cols) - 1.0
    y = (torch.arange(rows, **wide) + 0.5) * (2.0 / rows) - 1.0
    base = torch.stack((x[None, :].expand(rows, cols), y[:, None].expand(rows, cols))).float()
    scale = torch.tensor((2.0 / cols, 2.0 / rows), **wide).float().view(2, 1, 1)
    return (base + flow.float() * scale).permute(0, 2, 3, 1)


def warp(features: Tensor, flow: Tensor, *, size: Sequence[int], method: WarpMethod) -> Tensor:
    """Resample features to `size` at positions displaced by `flow`, bilinear, borders clamped.

    With zero flow this is plain bilinear upsampling with half-pixel centres.

    Args:
        features: Coarse map (batch, channels, r, c).
        flow: Offsets (batch, 2, rows, cols) in output pixels, x first.
        size: (rows, cols) of the output; the flow's.
        method: "grid_sample" uses the operator of that name, "gather" computes the same numbers from four
            gathers: slower to train with on a CPU, faster in exported graphs (see `deploy.export`).
    Returns:
        (batch, channels, rows, cols) in the features' dtype.
    Raises:
        ValueError: the flow has another size, or the method is unknown.
    """
    if tuple(flow.shape[2:]) != tuple(size):
        raise ValueError(f"flow is {tuple(flow.shape[2:])}, but the output size is {tuple(size)}")
    grid = sampling_grid(flow)
    if not torch.compiler.is_compiling():  # keeps exported graphs free of it
        # A diverging training must end in a message: torch's CPU kernel crashes the process in its backward
        # pass on NaN positions (pytorch/pytorch#24823). The loss still becomes NaN, through the maps.
        grid = torch.nan_to_num(grid)
    if method == "grid_sample":
        sampled = F.grid_sample(
            features.float(), grid, mode="bilinear", padding_mode="border", align_corners=False
        )
    elif method == "gather":
        sampled = _gather_bilinear(features.float(), grid)
    else:
        raise ValueError(f"warp is {method!r}, expected 'grid_sample' or 'gather'")
    return sampled.to(features.dtype)


def _gather_bilinear(features: Tensor, grid: Tensor) -> Tensor:
    """Bilinear sampling at `grid` with clamped borders, from gathers of whole pixels.

    One index takes all channels of a pixel, which lie side by side; benchmarks/warp.py times it.
    """
    batch, channels, rows, cols = features.shape
    # Clamping the position first is what padding_mode="border" does, and keeps indices in range.
    x = (((grid[..., 0] + 1.0) * cols - 1.0) * 0.5).clamp(0, cols - 1)
    y = (((grid[..., 1] + 1.0) * rows - 1.0) * 0.5).clamp(0, rows - 1)
    left, top = x.detach().floor(), y.detach().floor()
    right, bottom = (left + 1).clamp(max=cols - 1), (top + 1).clamp(max=rows - 1)
    dx, dy = (x - left)[..., None], (y - top)[..., None]
    pixels = features.permute(0, 2, 3, 1).reshape(batch, rows * cols, channels)
    image = torch.arange(batch, device=grid.device).view(-1, 1, 1)

    def pick(row: Tensor, col: Tensor) -> Tensor:
        # Whole numbers before the product: compilers that may use FP16 would round it above 2048.
        index = row.long() * cols + col.long()
        if not torch.onnx.is_in_onnx_export():
            return pixels[image, index]
        # The operator that knows a batch axis: an index for it would bring shape arithmetic into the graph.
        return torch.onnx.ops.symbolic(
            "GatherND",
            (pixels, index[..., None]),
            {"batch_dims": 1},
            dtype=pixels.dtype,
            shape=(*index.shape, channels),
        )

    upper = pick(top, left) * (1 - dx) + pick(top, right) * dx
    lower = pick(bottom, left) * (1 - dx) + pick(bottom, right) * dx
    return (upper * (1 - dy) + lower * dy).permute(0, 3, 1, 2)


class FlowAlignment(nn.Module):
    """Warp a coarse map onto a fine one with a flow predicted from both.

    flow = Conv3x3(CBR1x1(cat[Up(W_h coarse), W_l fine])), the 3x3 convolution (`flow_head`)
    zero-initialised, so that training starts from plain bilinear upsampling.
    """

    def __init__(self, channels: int, *, method: WarpMethod) -> None:
        super().__init__()
        width = max(channels // 2, 1)
        self.method = method
        self.flow_coarse = nn.Conv2d(channels, width, 1, bias=False)
        self.flow_fine = nn.Conv2d(channels, width, 1, bias=False)
        self.flow_merge = conv_bn_relu(2 * width, width, kernel=1)
        self.flow_head = nn.Conv2d(width, 2, 3, padding=1)
        nn.init.zeros_(self.flow_head.weight)
        nn.init.zeros_(self.flow_head.bias)

    def flow(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Offsets (batch, 2, rows, cols) in pixels of the fine map, x first."""
        lifted = upsample(self.flow_coarse(coarse), size=fine.shape[2:])
        merged: Tensor = self.flow_merge(torch.cat((lifted, self.flow_fine(fine)), 1))
        return self.flow_head(merged)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """The coarse map at the fine map's size."""
        return warp(coarse, self.flow(coarse, fine), size=fine.shape[2:], method=self.method)


class PlainUpsampling(nn.Module):
    """What `FlowAlignment` is without a flow: bilinear upsampling, no parameters."""

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """The coarse map at the fine map's size."""
        return upsample(coarse, size=fine.shape[2:])


class Hfam(nn.Module):
    """Merge four encoder levels top-down by alignment, then align all of them to the finest.

    P5 = L5; P_i = CBR3x3(L_i + Warp(P_{i+1}, flow)) for i = 4, 3, 2, where L_i is the lateral 1x1 map;
    Z = CBR3x3(cat[P2, Warp(P3), Warp(P4), Warp(P5)]).
    """

    def __init__(
        self,
        levels: Sequence[int],
        *,
        channels: int,
        enabled: bool = True,
        method: WarpMethod = "grid_sample",
    ) -> None:
        """Build for encoder levels of the given channel counts, finest first.

        Args:
            levels: Channels of the encoder's maps.
            channels: Width C of every merged map.
            enabled: False replaces every warp by plain bilinear upsampling.
            method: How warps are computed; see `warp`.
        """
        super().__init__()
        self.laterals = nn.ModuleList(conv_bn_relu(level, channels, kernel=1) for level in levels)
        self.smooth = nn.ModuleList(conv_bn_relu(channels, channels, kernel=3) for _ in levels[1:])
        self.fuse = conv_bn_relu(len(levels) * channels, channels, kernel=3)
        # Last, so that one seed gives all other weights the same values whether alignment is on or off.
        self.align = nn.ModuleList(_aligner(channels, enabled, method) for _ in levels[1:])
        self.aggregate = nn.ModuleList(_aligner(channels, enabled, method) for _ in levels[1:])

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps P2, P3, P4, P5 (finest first) and the fused map Z."""
        merged = [lateral(feature) for lateral, feature in zip(self.laterals, features, strict=True)]
        for level in reversed(range(len(merged) - 1)):
            aligned = self.align[level](merged[level + 1], merged[level])
            merged[level] = self.smooth[level](merged[level] + aligned)
        finest = merged[0]
        lifted = [aligner(coarse, finest) for aligner, coarse in zip(self.aggregate, merged[1:], strict=True)]
        return [*merged, self.fuse(torch.cat((finest, *lifted), 1))]


def _aligner(channels: int, enabled: bool, method: WarpMethod) -> nn.Module:
    return FlowAlignment(channels, method=method) if enabled else PlainUpsampling()
