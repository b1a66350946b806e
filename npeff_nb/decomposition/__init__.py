"""From per-example Fishers to components."""
