"""JSON text that was cut."""

from __future__ import annotations

import json

import pytest

from guardrail.wire.fields import before_escape, unescaped


# Half of a surrogate pair counts as a character already, which an emoji can spare.
@pytest.mark.parametrize("text", ['caf\u00e9 \\\\ and \n a "word" \\', "\\" * 9, "plain"])
def test_a_window_never_begins_behind_where_it_was_cut(text: str) -> None:
    written = json.dumps(text)[1:-1]
    for at in range(len(written) + 1):
        before = before_escape(written, at)
        assert before <= at
        assert unescaped(written).startswith(unescaped(written[:before]))
