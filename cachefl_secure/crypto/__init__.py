"""Primitives through pyca/cryptography, bytes in and bytes out. No I/O, no clock, no protocol state.

``secret``     types for values that must not print, pickle or compare in variable time
``sign``       Ed25519 identities, signatures under a purpose label, fingerprints
"""
