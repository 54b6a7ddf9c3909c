"""Worker processes: one per engine, one JSON line in, one JSON line out."""
