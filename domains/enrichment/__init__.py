"""Enrichment: who is behind a subscriber's personal address, asked in batches of a provider that answers later."""
