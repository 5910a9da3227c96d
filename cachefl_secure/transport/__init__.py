"""Bytes to peers. Every transport implements the two methods of ``federation.ports``; none is trusted.

``in_process``   threads and queues: the demo, the tests, and several silos on one machine
``flare``        NVIDIA FLARE, for live rounds across machines; an optional extra
"""
