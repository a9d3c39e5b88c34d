"""What lm-evaluation-harness's own tracker writes, as the audit reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is installed in an environment of its own")
pytest.importorskip("pyarrow", reason="the report extra is not installed")
pytest.importorskip("scipy", reason="the report extra is not installed")

from lm_eval.loggers import EvaluationTracker

from knapsack_rl.experiments.audit.audit import Options, audit
from knapsack_rl.experiments.audit.findings import remarks, summary


def test_the_samples_of_a_task_are_a_response_a_document_whatever_the_filters(tmp_path: Path) -> None:
    samples: list[dict[str, Any]] = [
        {
            "doc_id": doc,
            "doc": {"question": f"q{doc}", "answer": f"#### {doc}"},
            "target": doc,
            "arguments": [(f"Question: q{doc}\nAnswer:", {"until": ["\n"]})],
            "resps": [[f"The answer is {doc}."]],
            "filtered_resps": [f"{doc}" if loose else "[invalid]"],
            "filter": "flexible-extract" if loose else "strict-match",
            "metrics": ["exact_match"],
            "doc_hash": f"d{doc}",
            "prompt_hash": f"p{doc}",
            "target_hash": f"t{doc}",
            "exact_match": float(loose),
        }
        for doc in range(5)
        for loose in (False, True)
    ]
    tracker = EvaluationTracker(output_path=str(tmp_path))
    tracker.general_config_tracker.model_name_sanitized = "model"
    tracker.date_id = "2026-01-01T00-00-00.000000"
    tracker.save_results_samples("gsm8k", samples)
    found = audit([next(tmp_path.rglob("samples_gsm8k_*.jsonl"))], Options())
    assert int(found.log.rollouts.sum()) == len(found.log.keys) == 5
    assert sorted(found.log.texts) == [f"Question: q{doc}\nAnswer:" for doc in range(5)]
    said = " ".join((*remarks(found), *summary(found)))
    assert "filter has 2 values, strict-match, flexible-extract" in said
    assert "no share is given" in said
