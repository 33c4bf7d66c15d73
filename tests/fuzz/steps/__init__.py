"""Things that users do. Importing this package registers all of them."""

from . import (  # noqa: F401
    adapters,
    caches,
    changing,
    compiling,
    copying,
    files,
    forwards,
    generating,
    gradients,
    hooks,
    interrupts,
    lifecycle,
    processes,
    reading,
    resizing,
    submodules,
    threads,
)
