"""From a trained run to embeddings, and from embeddings to what they are worth."""
