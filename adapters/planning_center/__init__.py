"""Planning Center's People API as a source of syncs."""
