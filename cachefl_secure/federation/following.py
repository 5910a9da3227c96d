"""What a silo checks for itself before it takes up a roster: that it stands there as itself."""

from __future__ import annotations

from collections.abc import Sequence

from cachefl_secure.errors import PeerError
from cachefl_secure.federation.chain import Chain
from cachefl_secure.federation.countersigning import kept_countersignatures
from cachefl_secure.federation.enrolment import check_own_entry, open_roster
from cachefl_secure.federation.roster_change import RosterChange, RosterHistory
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.state_dir import ROSTER_FILE
from cachefl_secure.names import COORDINATOR
from cachefl_secure.protocol.messages import Roster


def pin_first_roster(raw: bytes, changes: Sequence[RosterChange], files: SiloFiles) -> None:
    """Keeps the first roster of the federation, if the changes lead from it to one with this silo in it.

    The first may lack this silo, which joined later. From now on only what follows it is accepted.

    Raises:
        PeerError: a roster or a change does not hold, or the last roster lacks this silo; nothing was written.
        ConfigError, RecordRejected: something here is of another roster.
    """
    rosters = RosterHistory.first(files.plan, open_roster(raw, files.plan))
    if len(rosters.current.members) < files.plan.secure_sum.minimum_cohort:
        raise PeerError(COORDINATOR, "the roster has too few silos")
    for change in changes:
        rosters = rosters.follow(change)
    check_own_entry(rosters.current, files.silo, files.state.signing_key().public_key)
    # What is here from before, if anything is, must be of this roster: the file of one that was pinned may be lost.
    kept_countersignatures(files.state, rosters.rosters[0])
    Chain(files.state, files.plan, RosterHistory.first(files.plan, rosters.rosters[0]))
    files.state.write_once(ROSTER_FILE, raw)


def check_place_of_this_silo(roster: Roster, files: SiloFiles) -> bool:
    """Whether the roster gives this silo the new key that it asked for. It may also be without this silo.

    Raises:
        PeerError: it names a key for this silo that is not its own.
    """
    asked, named = files.state.next_signing_key(), roster.public_keys.get(files.silo)
    own = files.state.signing_key().public_key
    if named in (None, own):
        return False
    if asked is None or named != asked.public_key:
        raise PeerError(COORDINATOR, "the roster names another key for this silo")
    return True
