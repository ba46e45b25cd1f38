"""The encoder written out here is transformers' BertModel, number for number."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from guardrail.safeguard import int8
from guardrail.safeguard.encoder import Encoder, Shape, from_bert

TINY: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    ids = torch.randint(0, 50, (3, 20))
    mask = torch.ones(3, 20, dtype=torch.long)
    mask[1, 12:] = 0
    segments = torch.zeros(3, 20, dtype=torch.long)
    segments[:, 7:] = 1
    return ids, mask, segments


def test_it_agrees_with_transformers(inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    from transformers import BertConfig, BertModel

    ids, mask, segments = inputs
    theirs: torch.nn.Module = BertModel(BertConfig(**TINY), add_pooling_layer=False)
    theirs.eval()
    ours = Encoder(Shape.of_bert(TINY)).eval()
    ours.load_state_dict(from_bert(theirs.state_dict()))
    with torch.inference_mode():
        expected = theirs(input_ids=ids, attention_mask=mask, token_type_ids=segments).last_hidden_state
        found = ours(ids, mask, segments)
    assert torch.allclose(found[mask.bool()], expected[mask.bool()], atol=1e-5)


def test_padding_changes_nothing(inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    ids, mask, segments = inputs
    encoder = Encoder(Shape.of_bert(TINY)).eval()
    with torch.inference_mode():
        together = encoder(ids, mask, segments)[1, :12]
        alone = encoder(ids[1:2, :12], mask[1:2, :12], segments[1:2, :12])[0]
    assert torch.allclose(together, alone, atol=1e-5)


def test_int8_stays_near(inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    ids, mask, segments = inputs
    encoder = Encoder(Shape.of_bert(TINY)).eval()
    with torch.inference_mode():
        exact = encoder(ids, mask, segments)
        int8.narrow(encoder)
        near = encoder(ids, mask, segments)
    assert not torch.equal(near, exact)
    assert torch.nn.functional.cosine_similarity(near, exact, dim=-1).min() > 0.999


def test_rows_come_back_within_half_a_step() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(20, 64)
    narrow, scale = int8.quantize_rows(matrix)
    assert narrow.dtype == torch.int8
    assert ((int8.dequantize(narrow, scale) - matrix).abs() <= scale.unsqueeze(-1) * 0.5 + 1e-6).all()
    assert torch.equal(int8.quantize_rows(torch.zeros(2, 3))[0], torch.zeros(2, 3, dtype=torch.int8))
