"""Training small models on a CPU with a GRPO loop in one file, which is the example of ask and tell."""
