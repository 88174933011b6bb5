"""What Vertex AI and AI Studio have in common: Google's wire, and the translation to OpenAI's."""
