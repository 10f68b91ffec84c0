"""Add cells, columns, embeddings and layers to a finished store."""
