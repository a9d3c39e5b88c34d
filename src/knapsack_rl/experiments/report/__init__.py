"""Pages with figures and tables: what `report`, `compare`, `simulate` and `audit` write for people to read."""
