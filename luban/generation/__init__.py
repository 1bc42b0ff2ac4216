"""Texts written token by token, once for every network that is a `Generator`: sampling, beams, stop strings, streams.

Nothing here knows a modality: a network says what its state is, a column what ids mean.
"""
