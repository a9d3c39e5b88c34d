"""`knapsack-rl probe`: a few dozen steps at even groups say whether an allocation can help, and which."""
