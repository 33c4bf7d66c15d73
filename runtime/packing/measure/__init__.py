"""Measurements that arranging asks for: lengths and errors of encoded matrices. May import arrange and stream."""
