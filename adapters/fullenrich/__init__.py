"""FullEnrich: reverse look-up of addresses in batches, and everything that starts one."""
