"""Add columns, embeddings and layers to a finished store."""
