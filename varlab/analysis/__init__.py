"""Analysis: pure functions of block moments, a reference and data frames; nothing here samples, stores or draws on import."""
