"""One road from a checkpoint to a bundle: open, describe, arrange, stream, write. May import all but loading on."""
