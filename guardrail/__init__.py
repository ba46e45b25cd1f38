"""An OpenAI-compatible proxy that makes a chat model's output safe without making it useless."""

__version__ = "0.1.0"
