"""A fake of Google's services: Vertex AI, Cloud Storage, AI Studio."""
