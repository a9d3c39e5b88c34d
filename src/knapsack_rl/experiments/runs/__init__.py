"""What a run is while it runs and what it leaves: its directory, its display, its interruptions."""
