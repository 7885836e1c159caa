"""Runs a consumer's script that kills itself, once, at a point that matters: python failpoints.py POINT SCRIPT.

The kit's own code has no such points; they are put in from outside, here.
"""
