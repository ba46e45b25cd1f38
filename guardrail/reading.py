"""YAML as people write it by hand: a key that stands twice in one mapping is a mistake, not a choice of the last."""

from __future__ import annotations

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    pass


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    names = [loader.construct_object(key) for key, _ in node.value]
    for at, (key, _) in enumerate(node.value):
        if names[at] in names[:at]:
            raise yaml.constructor.ConstructorError(None, None, f"{names[at]!r} stands twice", key.start_mark)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(text: str) -> Any:
    """Raises `yaml.YAMLError`, with its `problem_mark` where the mistake has a place."""
    return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
