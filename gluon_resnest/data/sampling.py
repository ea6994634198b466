"""Randomness as a function, and which worker reads which sample when."""
