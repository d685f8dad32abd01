"""Studies: whatever runs measurements."""
