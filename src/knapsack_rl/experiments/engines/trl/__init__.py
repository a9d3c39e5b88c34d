"""Training with TRL's GRPOTrainer."""
