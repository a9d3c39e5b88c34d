"""What turns a recipe into a trained model: TRL, a bare loop of our own, or verl, and what these start from."""
