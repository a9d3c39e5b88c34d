"""How long the rollouts of a real model are: samples some for each question, and prints their numbers of tokens.

    python benchmarks/lengths.py --model MODEL --questions gsm8k/test.jsonl > benchmarks/lengths.csv

One line a question, one number a rollout; `dealing.py` simulates with them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a name or a folder, with a chat template")
    parser.add_argument("--questions", type=Path, required=True, help="JSON lines with a field `question`")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--longest", type=int, default=512, help="tokens at which a rollout is cut off")
    parser.add_argument("--batch", type=int, default=8, help="prompts at a time")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(chosen.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(chosen.model, dtype=torch.bfloat16).eval()
    lines = chosen.questions.read_text(encoding="utf-8").splitlines()[: chosen.prompts]
    chats = [[{"role": "user", "content": json.loads(line)["question"]}] for line in lines]
    for start in range(0, len(chats), chosen.batch):
        prompts = tokenizer.apply_chat_template(
            chats[start : start + chosen.batch],
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        )
        rows = model.generate(
            **prompts,
            max_new_tokens=chosen.longest,
            do_sample=True,
            top_k=0,
            num_return_sequences=chosen.rollouts,
        )[:, prompts["input_ids"].shape[1] :]
        ended = (rows == tokenizer.eos_token_id).int()
        lengths = torch.where(ended.any(dim=1), ended.argmax(dim=1) + 1, rows.shape[1])
        for group in lengths.view(-1, chosen.rollouts).tolist():
            print(*group, sep=",", flush=True)


if __name__ == "__main__":
    main()
