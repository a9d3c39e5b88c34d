"""Pages that need no network: their layout, their figures, their words."""
