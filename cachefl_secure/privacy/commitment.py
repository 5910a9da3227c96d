"""Names the set of records a silo trains on, without showing anything about them."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from cachefl_secure.crypto.secret import Secret
from cachefl_secure.names import Digest, digest_of


class CommitmentSalt(Secret):
    """Stays in the silo. Without it, whoever guesses a record could confirm the guess."""

    __slots__ = ()


def data_commitment(record_digests: Iterable[Digest], salt: CommitmentSalt) -> Digest:
    """HMAC-SHA256 over the sorted digests: binding, independent of their order, silent about their number.

    Showing salt and digests to an auditor opens it.
    """
    listed = digest_of(
        "cachefl-secure/data-commitment/1", *(bytes.fromhex(d) for d in sorted(record_digests))
    )
    return Digest(hmac.new(salt.reveal(), bytes.fromhex(listed), "sha256").hexdigest())
