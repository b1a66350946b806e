"""The last room: what was computed becomes a picture."""
