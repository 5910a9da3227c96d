"""Primitives through pyca/cryptography, bytes in and bytes out. No I/O, no clock, no protocol state.

``secret``     types for values that must not print, pickle or compare in variable time
``derive``     HKDF-SHA256 under named, versioned purposes
``agreement``  X25519
``sign``       Ed25519 identities, signatures under a purpose label, fingerprints
``seal``       AES-256-GCM: once under a fresh derived key, or at rest under a long-lived one
``expand``     AES-128-CTR: a seed into a keystream, and keystreams onto ring vectors as masks
``shamir``     t-of-n shares over GF(2^31 - 1)
"""
