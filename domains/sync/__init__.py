"""Manifest-driven synchronisation: an adapter's manifest says which entities there are, and everything else follows from it."""
