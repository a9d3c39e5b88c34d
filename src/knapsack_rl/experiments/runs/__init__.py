"""What a run leaves behind and how it is kept: its directory, its progress, its interruptions."""
