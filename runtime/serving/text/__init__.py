"""Text of a model: prompts from chats; text, reasoning and tool calls from tokens; grammars for what is chosen."""
