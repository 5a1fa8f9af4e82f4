"""Features, items, histories and pairs become vectors."""
