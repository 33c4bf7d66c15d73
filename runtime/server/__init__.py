"""The server: an application over the engines of models, and the process that runs it."""
