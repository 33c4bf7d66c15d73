"""The interface of Ollama: chat, generate, and what models there are."""
