"""Files of other programs: what they wrote is read, what they read is written."""
