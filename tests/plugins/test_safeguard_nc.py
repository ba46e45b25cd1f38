"""Weights that come as a package of their own: registered by name, and named in their licence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from guardrail.config import Settings
from guardrail.plugins import Registry
from guardrail.safeguard.model import read_settings

PACKAGE = Path(__file__).parents[2] / "plugins/safeguard-nc"


def test_the_plugin_registers_its_weights_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PACKAGE))
    monkeypatch.delitem(sys.modules, "guardrail_safeguard_nc", raising=False)
    import guardrail_safeguard_nc  # type: ignore[import-not-found]

    registry = Registry()
    guardrail_safeguard_nc.register(registry)
    folder = registry.weights_folder(Settings(weights="safeguard-nc"))
    assert folder is not None
    assert read_settings(folder).manifest["permissive"] is False
    assert {"model.safetensors", "config.json", "tokenizer.json", "MODEL_CARD.md"} <= {p.name for p in folder.iterdir()}


def test_the_licence_says_what_it_forbids() -> None:
    assert "NonCommercial" in (PACKAGE / "LICENSE").read_text()
