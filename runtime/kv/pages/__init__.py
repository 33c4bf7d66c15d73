"""Pages of KV: the pool, write-back, reads, readahead, summaries, the file for pages that leave memory."""
