"""The embedded model and data, and the main job run on them."""
