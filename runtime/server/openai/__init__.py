"""The interface of OpenAI: models, chat completions, completions, responses."""
