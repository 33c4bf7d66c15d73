"""Open one component of a model from its settings: KV, device, stored prompts."""
