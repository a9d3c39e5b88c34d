"""Stand-ins for the pretrained model and the problems of recipes/smollm2-word-problems.yaml, made in a second.

    python benchmarks/small_problems.py FOLDER     writes FOLDER/model and FOLDER/data

A Llama of a few thousand parameters that reads characters, and a few dozen problems in the files of SVAMP, ASDiv and
MAWPS: enough to see a command work where neither is at hand.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from knapsack_rl.experiments.engines import models
from knapsack_rl.experiments.recipe.model_schema import ScratchModelConfig
from knapsack_rl.tasks import reasoning_gym


def write_problems(folder: Path) -> None:
    """Three sets in the schemas of their own repositories."""
    for name in ("svamp", "asdiv", "mawps"):
        (folder / name).mkdir(parents=True)
    numbers = range(2, 26)
    svamp = [
        {
            "Body": f"Tom has {n} cups",
            "Question": "He gets 3. How many now?",
            "Equation": f"( {n}.0 + 3.0 )",
            "Answer": n + 3.0,
            "Type": "Addition",
        }
        for n in numbers
    ]
    mawps = [
        {"sQuestion": f"Ann eats 1 of {n} nuts.", "lEquations": [f"X={n}-1"], "lSolutions": [n - 1.0]} for n in numbers
    ]
    asdiv = "".join(
        f'<Problem Grade="1"><Body>{n} bags of 2.</Body><Question>All?</Question><Solution-Type>Multiplication'
        f"</Solution-Type><Answer>{2 * n} (bags)</Answer><Formula>{n}*2={2 * n}</Formula></Problem>"
        for n in numbers
    )
    (folder / "svamp/SVAMP.json").write_text(json.dumps(svamp))
    (folder / "mawps/AddSub.json").write_text(json.dumps(mawps))
    (folder / "asdiv/ASDiv.xml").write_text(f"<Corpus>{asdiv}</Corpus>")


def write_model(folder: Path) -> None:
    """A small Llama that reads characters, as `save_pretrained` writes it."""
    gcd = reasoning_gym.GeneratorConfig(name="gcd")
    tokenizer = reasoning_gym.tokenizer(reasoning_gym.ReasoningGymConfig(sources=(gcd,)))
    torch.manual_seed(0)
    size = ScratchModelConfig(kind="scratch", architecture="llama", layers=1, width=16, heads=2)
    models.from_scratch(size, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    write_problems(Path(sys.argv[1]) / "data")
    write_model(Path(sys.argv[1]) / "model")
