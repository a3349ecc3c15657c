"""Model folders: found, merged, fetched, served."""
