"""Several strategies and seeds at equal cost, and what can be said about them."""
