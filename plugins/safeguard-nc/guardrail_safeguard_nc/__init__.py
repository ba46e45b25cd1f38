"""Weights trained on non-commercial data too, under the name `safeguard-nc`: `GUARDRAIL_WEIGHTS=safeguard-nc`."""

from __future__ import annotations

from pathlib import Path

from guardrail.plugins import Registry


def register(registry: Registry) -> None:
    registry.safeguard("safeguard-nc", Path(__file__).parent / "weights")
