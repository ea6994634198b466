"""The published tables as data, what their rows cost, how they are run, and how they turned out."""
