"""Layers that multiply in int8 on the CPU, made of `torch._int_mm`.

Activations get one scale a row, so a text's result does not depend on what else is in its batch, as it does
with one scale a tensor (torch's own dynamic quantisation, which is also deprecated and warns).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_STEPS = 127.0


def quantize_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns) floats to int8 and one float32 scale a row."""
    scale = matrix.abs().amax(-1).clamp_min(1e-12) / _STEPS
    return (matrix / scale.unsqueeze(-1)).round().to(torch.int8).contiguous(), scale.contiguous()


def dequantize(matrix: Tensor, scale: Tensor) -> Tensor:
    return matrix.float() * scale.unsqueeze(-1)


class Int8Linear(nn.Module):
    """`nn.Linear` with int8 weights of shape (out, in)."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.columns = weight.t()  # a view: one copy of the weights, read in the order the product wants
        self.scale = scale
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        row_scale = rows.abs().amax(-1, keepdim=True).clamp_(min=1e-12).div_(_STEPS)
        product = torch._int_mm((rows / row_scale).round_().to(torch.int8), self.columns)
        out = product.float().mul_(row_scale).mul_(self.scale).add_(self.bias)
        return out.view(*x.shape[:-1], -1)


class Int8Embedding(nn.Module):
    """`nn.Embedding` with int8 rows."""

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.scale = scale

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight[ids].float() * self.scale[ids].unsqueeze(-1)


def narrow(module: nn.Module) -> None:
    """Replace every `nn.Linear` inside `module` by its int8 form, in place."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            weight, scale = quantize_rows(child.weight.detach())
            setattr(module, name, Int8Linear(weight, scale, child.bias.detach()))
        else:
            narrow(child)
