"""Looking at generation. Nothing here knows a model."""
