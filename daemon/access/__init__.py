"""Who may ask, and how much: API keys from a file, limits of each key, the line in which requests wait."""
