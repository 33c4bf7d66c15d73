"""Decisions of packing: which format each matrix gets, in which order blocks lie, on which drive. Reads nothing."""
