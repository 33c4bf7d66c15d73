"""Differential fuzzing: random models, settings and things that users do, on transformers' model and on Penstock's.

``python -m tests.fuzz SEED`` plays one case, ``python -m tests.fuzz FIRST LAST --log FILE`` a range of them.
"""
