from __future__ import annotations

import pytest

pytest.importorskip("pyarrow", reason="the report extra is not installed")
pytest.importorskip("scipy", reason="the report extra is not installed")

from knapsack_rl.experiments.audit.tables import apart


def test_prompts_of_one_table_differ_where_they_differ() -> None:
    one, other = ("system You are a helpful assistant. " * 3, "system You are a careful grader of homework. " * 3)
    texts = [f"{head}user\nWhat is {n} + {n}?" for head in (one, other) for n in (17, 18)]
    shown = [text[:70] for text in apart(texts, 70)]
    assert len(set(shown)) == 4
    assert all(text.endswith(("17 + 17?", "18 + 18?")) for text in shown)
    assert apart(["short", "short", "shorter"], 70) == ["short", "short", "shorter"]
    assert apart([], 70) == []
