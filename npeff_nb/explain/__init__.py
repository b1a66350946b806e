"""Components in words: which tokens, which examples, which layers."""
