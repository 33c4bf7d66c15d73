"""The interface of Anthropic: messages, and how many tokens they have."""
