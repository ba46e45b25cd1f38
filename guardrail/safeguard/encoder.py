"""The BERT encoder (MiniLM's), written out, for the sake of loading time and of int8.

transformers' own BertModel is the reference (a test holds the two together), but importing it takes longer than all
the rest of loading the safeguard. Query, key and value are one matrix here: in int8 their input is rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

NORM_EPSILON = 1e-12
DROPOUT = 0.1


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of an encoder."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    inner: int
    positions: int
    segments: int = 2

    @classmethod
    def of_bert(cls, config: Mapping[str, Any]) -> Shape:
        """From the `config.json` of a BERT in transformers' format."""
        return cls(
            vocabulary=config["vocab_size"],
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            inner=config["intermediate_size"],
            positions=config["max_position_embeddings"],
        )


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.attend = nn.Linear(shape.width, 3 * shape.width)
        self.merge = nn.Linear(shape.width, shape.width)
        self.merge_norm = nn.LayerNorm(shape.width, eps=NORM_EPSILON)
        self.widen = nn.Linear(shape.width, shape.inner)
        self.narrow = nn.Linear(shape.inner, shape.width)
        self.narrow_norm = nn.LayerNorm(shape.width, eps=NORM_EPSILON)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, hidden: Tensor, allowed: Tensor | None) -> Tensor:
        """`hidden`: (N, L, width). `allowed`: booleans (N, 1, 1, L), where attention may look; None for everywhere."""
        count, length, width = hidden.shape
        split = self.attend(hidden).view(count, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        merged = self.merge(seen.transpose(1, 2).reshape(count, length, width))
        hidden = self.merge_norm(hidden + self.dropout(merged))
        changed = self.narrow(functional.gelu(self.widen(hidden)))
        out: Tensor = self.narrow_norm(hidden + self.dropout(changed))
        return out


class Encoder(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.words = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = nn.Embedding(shape.positions, shape.width)
        self.segments = nn.Embedding(shape.segments, shape.width)
        self.norm = nn.LayerNorm(shape.width, eps=NORM_EPSILON)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))

    def forward(self, ids: Tensor, mask: Tensor, segments: Tensor) -> Tensor:
        """Integers of shape (N, L) to states of shape (N, L, width)."""
        return self.through(self.embed(ids, segments), mask)

    def embed(self, ids: Tensor, segments: Tensor) -> Tensor:
        places = self.positions(torch.arange(ids.shape[1], device=ids.device))
        out: Tensor = self.norm(self.words(ids) + places + self.segments(segments))
        return out

    def through(self, hidden: Tensor, mask: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Through layers `[first, last)`."""
        allowed = None if bool(mask.all()) else mask.bool()[:, None, None, :]
        for layer in self.layers[first:last]:
            hidden = layer(hidden, allowed)
        return hidden


def from_bert(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of transformers' BertModel under this encoder's names; the pooler is left out."""
    renamed = {
        "words.weight": stored["embeddings.word_embeddings.weight"],
        "positions.weight": stored["embeddings.position_embeddings.weight"],
        "segments.weight": stored["embeddings.token_type_embeddings.weight"],
        "norm.weight": stored["embeddings.LayerNorm.weight"],
        "norm.bias": stored["embeddings.LayerNorm.bias"],
    }
    names = {
        "merge": "attention.output.dense",
        "merge_norm": "attention.output.LayerNorm",
        "widen": "intermediate.dense",
        "narrow": "output.dense",
        "narrow_norm": "output.LayerNorm",
    }
    index = 0
    while f"encoder.layer.{index}.output.dense.weight" in stored:
        theirs = f"encoder.layer.{index}"
        for kind in ("weight", "bias"):
            parts = [stored[f"{theirs}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            renamed[f"layers.{index}.attend.{kind}"] = torch.cat(parts)
            for ours, name in names.items():
                renamed[f"layers.{index}.{ours}.{kind}"] = stored[f"{theirs}.{name}.{kind}"]
        index += 1
    return renamed
