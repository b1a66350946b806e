"""Per-example Fishers: from a model and its examples to factor rows."""
