"""Bytes to peers. Every transport implements the two methods of ``federation.ports``; none is trusted.

``engines``      which of them a federation uses, by the URL in its invite: begin here
``in_process``   threads and queues: the demo, the tests, and several silos on one machine
``mailbox``      parcels in a shared folder or object store, which ``store`` reaches through fsspec
``flare``        NVIDIA FLARE, for live rounds across machines; an optional extra
"""
