"""The configuration: settings, their file, their precedence. Only loading, planning and cli read ``Config``."""
