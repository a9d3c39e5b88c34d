"""Audits of rollout logs: what a training run spent without a gradient, and what an allocation would have planned."""
