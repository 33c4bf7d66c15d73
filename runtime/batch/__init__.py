"""Files of requests that are worked off: OpenAI's batch lines in and out, resumable."""
