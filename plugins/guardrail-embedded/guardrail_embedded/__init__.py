"""The embedded demo upstream and the replay upstream, as a plugin of guardrail.

`--upstream embedded` answers with SmolLM2-135M-Instruct in this process; `--upstream replay` or `replay:FILE` with
canned answers. Importing loads no model: torch and transformers come with the first request.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from guardrail.errors import ConfigError
from guardrail.upstream import Upstream

__all__ = ["register"]


class Registry(Protocol):
    """The part of guardrail's plugin registry used here."""

    def upstream(self, name: str, factory: Callable[..., Upstream], /) -> object: ...


def _embedded(*, argument: str = "") -> Upstream:
    from guardrail_embedded.smollm import SmolUpstream

    if argument:
        raise ConfigError(f"upstream 'embedded' takes nothing after a colon, got {argument!r}")
    return SmolUpstream()


def _replay(*, argument: str = "") -> Upstream:
    from guardrail_embedded.replay import ReplayUpstream, load_entries

    return ReplayUpstream(load_entries(Path(argument) if argument else None))


def register(registry: Registry) -> None:
    registry.upstream("embedded", _embedded)
    registry.upstream("replay", _replay)
