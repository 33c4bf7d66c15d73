"""The tests of the kernels on a library that reports every access outside of memory, and all undefined behaviour.

``python -m tests.sanitize`` compiles it, and runs the tests at each level of instructions that this machine has.
"""
