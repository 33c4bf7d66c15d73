"""What a sequence needs of a KV tier, found by looking at a cache that has tokens."""

from ....kernels.kv.registry import FORMATS
from ....tiering.kv.extents import EXTENT
from ....tiering.serving.kv_room import KVRoom, LayerRoom
from .cache import PagedCache
from .formats import AS_IS, MIXED
from .layer import PagedLayer


def room_of(cache: PagedCache) -> KVRoom:
    """The room of the tier of ``cache``, which has tokens, for more caches like it."""
    layers = [layer for layer in cache.layers if isinstance(layer, PagedLayer) and layer.is_initialized]
    pool = cache.tier.pool
    return KVRoom(
        pool.memory.room,
        pool.flash_limit,
        tuple(map(_layer_room, layers)),
        spills=all(layer.selector is None for layer in layers),
    )


def _layer_room(layer: PagedLayer) -> LayerRoom:
    encoding, (keys, values) = layer.tier.encoding, layer.shapes
    # Mixed pages get the larger format if they are important, and which are is known later.
    stored = AS_IS if encoding.keeps_all else FORMATS["int8" if encoding.name == MIXED else encoding.name]
    newest = 1
    if not encoding.keeps_all:  # one in which the recent tokens begin, one that is being encoded
        newest += -(-encoding.recent // keys.tokens) + 1
    if layer.is_sliding:  # a prompt begins a new page before the former one is dropped
        newest += 1
    return LayerRoom(
        keys.tokens,
        (AS_IS.key_bytes(keys), AS_IS.value_bytes(values)),
        (stored.key_bytes(keys), stored.value_bytes(values)),
        EXTENT,
        newest,
        layer.window,
        0 if layer.selector is None else layer.selector.summary_bytes(keys),
    )
