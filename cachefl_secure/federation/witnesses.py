"""What others hold of a silo's ledger: heads named in records, and in receipts that the silo signed. Runs without torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from cachefl_secure.crypto.sign import verify
from cachefl_secure.errors import PeerError
from cachefl_secure.federation import letters
from cachefl_secure.federation.coordinator_files import INVITE_FILE, CoordinatorFiles
from cachefl_secure.federation.records import Records
from cachefl_secure.federation.roster_files import read_history
from cachefl_secure.federation.silo_files import CONFIG_FILE, SiloFiles
from cachefl_secure.federation.state_dir import ROSTER_FILE
from cachefl_secure.names import Digest, PublicKeyHex, SiloId

Witnessed = Mapping[PublicKeyHex, set[Digest]]
"""Heads of ledgers that others hold, by the key that signs the ledger: a name may be another's elsewhere."""


def witnessed_heads(roots: Sequence[Path]) -> Witnessed:
    """Heads of silos' ledgers that any of these directories holds: in its records, or in a silo's receipt."""
    heads: dict[PublicKeyHex, set[Digest]] = {}
    for root in roots:
        if not (root / ROSTER_FILE).is_file():
            continue
        files = SiloFiles.open(root) if is_silo(root) else CoordinatorFiles.open(root)
        records = Records(files.state, files.plan, read_history(files.state, files.plan))
        held = {silo: set(records.ledger_heads_of(silo)) for silo in records.rosters.all_silos()}
        if isinstance(files, CoordinatorFiles):
            for silo, receipts in verified_receipts(files, records).items():
                held.setdefault(silo, set()).update(Digest(receipt.ledger_head) for receipt in receipts)
        for silo, found in held.items():
            # One ledger, whichever of the silo's keys it was signed with by then.
            for key in records.rosters.keys_of(silo):
                heads.setdefault(key, set()).update(found)
    return heads


def why_no_head(root: Path, public_keys: Collection[PublicKeyHex]) -> str:
    """Why this directory holds no head of the ledger that these keys sign, in words."""
    if not is_silo(root) and not (root / INVITE_FILE).is_file():
        return "names no head of this ledger: no directory of a coordinator or a silo"
    if not (root / ROSTER_FILE).is_file():
        return "has nothing to witness yet: no silo has been admitted there"
    if not witnessed_heads([root]).keys() & set(public_keys):
        return "names no head of this ledger: its silo is not in that federation"
    return "has nothing to witness yet: no round with this ledger's silo has been run and recorded there"


def is_silo(root: Path) -> bool:
    return (root / CONFIG_FILE).is_file()


def verified_receipts(files: CoordinatorFiles, records: Records) -> dict[SiloId, list[letters.Receipt]]:
    """Every receipt of each silo, oldest first.

    Raises:
        PeerError: a silo's signature does not verify, or is under a roster that is none of ours or lacks it.
    """
    receipts = receipts_of(files)
    for silo, receipt in [(silo, receipt) for silo, each in receipts.items() for receipt in each]:
        roster = records.rosters.named(receipt.roster_digest)
        if roster is None or silo not in roster.public_keys:
            raise PeerError(silo, "signed a receipt under another roster")
        signed = letters.receipt_bytes(receipt)
        verify(roster.public_keys[silo], letters.RECEIPT_PURPOSE, signed, receipt.signature, peer=silo)
    return receipts


def receipts_of(files: CoordinatorFiles) -> dict[SiloId, list[letters.Receipt]]:
    """As the coordinator keeps them, not verified."""
    if not files.state.has(letters.RECEIPTS_FILE):
        return {}
    return letters.read_receipts(files.state.read(letters.RECEIPTS_FILE), file=str(files.state.root))
