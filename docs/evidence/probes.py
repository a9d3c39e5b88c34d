"""The table of probe.md, from the `probe.json` of each probe.

python docs/evidence/probes.py FILE ...     by default those in docs/evidence/probes
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COLUMNS = (
    "probe", "all wrong, %", "all right, %", "hard gain, points", "easy gain, points", "noise scale",
    "worth: hard", "middle", "nearly solved", "verdict",
)  # fmt: skip


def row(found: dict[str, Any]) -> list[str]:
    """The cells of a probe."""
    numbers, verdict = found["numbers"], found["verdict"]
    wrong, right = (100.0 * numbers["statuses"][f"extremely {kind}"]["value"] for kind in ("hard", "easy"))
    return [
        found["name"],
        f"{wrong:.0f}",
        f"{right:.0f}",
        *(gain(numbers["gains"][place]) for place in (1, 3)),
        interval(numbers["noise_scale"]),
        *(worth(numbers[band]) for band in ("hard", "middle", "solved")),
        f"{verdict['kind']}: `{verdict['strategy']}`",
    ]


def interval(scale: dict[str, Any]) -> str:
    """Of a noise scale; null stands for what has no limit, or is not known."""
    if scale["low"] is None:
        return "—"
    return f"{scale['low']:,.0f} to {scale['high']:,.0f}" if scale["high"] else f"from {scale['low']:,.0f}"


def gain(one: dict[str, Any]) -> str:
    """With two standard errors."""
    if one["rise"] is None or one["error"] is None:
        return "—"
    return f"{100.0 * one['rise']:+.1f} +- {200.0 * one['error']:.1f}"


def worth(band: dict[str, Any]) -> str:
    """With two standard errors."""
    return "—" if band["worth"] is None or band["error"] is None else f"{band['worth']:.2f} +- {2 * band['error']:.2f}"


def main(files: list[Path]) -> None:
    """Print the table."""
    rows = [list(COLUMNS), ["---"] * len(COLUMNS), *(row(json.loads(file.read_text())) for file in files)]
    for cells in rows:
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]] or sorted((HERE / "probes").glob("*.json")))
