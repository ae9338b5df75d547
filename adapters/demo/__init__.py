"""`./dev demo`: the systems at work, killed on the way, and judged by what the outside world itself has recorded."""
