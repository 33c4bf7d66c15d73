"""Records of a running model: traces to look at, and recordings of decisions to replay.

It imports the tiering part and ``runtime.checkpoints``; what it records comes to it through Protocols.
"""
