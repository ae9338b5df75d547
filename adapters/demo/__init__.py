"""`./dev demo`: the sync system at work, killed on the way, and judged by the source's own data."""
