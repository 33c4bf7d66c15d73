"""From a source and a configuration to a transformers model on tiers: open, arrange, install, and the handle. It may
import all rooms but planning and cli."""
