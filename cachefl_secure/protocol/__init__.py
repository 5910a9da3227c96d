"""One round of CF-SecAgg/1, told as a story. Messages in, messages out: no network, no file, no clock.

A coordinator and n silos want the sum of the silos' updates, and nobody is to see more than the sum.
Up to f silos may pool what they know with the coordinator.

    phase           who -> whom             what                                       who can read it
    manifest        coordinator -> silos    plan, roster, round, attempt, cohort,      all
                                            cache, previous record, as digests
    advertise       silo -> coordinator     two fresh X25519 public keys               all
    key list        coordinator -> silos    all advertisements (U1), still signed      all
    share           silo -> coordinator     Shamir shares of its self-mask seed and    a share: the one silo
                                            its mask key, sealed for each other silo   that it is sealed for
    share delivery  coordinator -> silo     who shared (U2), its own sealed shares     that silo
    masked input    silo -> coordinator     update + self mask +- pairwise masks       nobody: it is uniform
    survivor set    coordinator -> silos    whose masked input arrived (U3), by the    all
                                            signed headers, without the vectors
    certify         silo -> coordinator     one signature per attempt over manifest,   all
                                            key list, U2, U3 and masked inputs
    certificate     coordinator -> silos    signatures of a quorum over one statement  all
    unmask          silo -> coordinator     per survivor a self-mask share, per        coordinator
                                            dropped silo a mask-key share, never both
    the sum         coordinator             sum over U3                                all

Why the sum comes out: each pair of silos derives one mask; one adds it, the other subtracts it. What is
left in the sum are the survivors' self masks and the masks that survivors share with dropped silos.
t silos together can recover exactly those seeds (``shamir``), and the coordinator takes them off.

Why nothing else does: no honest silo reveals its share of a survivor's mask key, so the pairwise masks
between honest survivors stay; none reveals its share of a dropped silo's self-mask seed, so that silo's
update stays hidden even if it arrives late. t - 1 shares say nothing. 2 t > N + f, N silos in the roster: no silo's two secrets
can both be recovered, as some honest silo would have had to reveal both its shares of that silo; nor can
two sums over the same updates be opened, whatever cohorts the attempts had, as some honest silo would
have had to reveal shares twice for one update.

Up to 128 silos everybody shares masks and secrets with everybody. Above, with k neighbours on a random ring,
and t counts shares among these; silos then also refuse lists that would leave too few in a row on the ring (``graph``).

Every mask and share derives from (version, manifest digest, key list digest, parties, purpose), so
silos that were told different things share no mask. Every message is signed for this attempt and phase.

A coordinator that tells different silos different lists gets at most one survivor set of an attempt answered: a silo
reveals nothing before q = floor((N + f) / 2) + 1 silos have signed the very statement that it signed itself,
and two such groups share an honest silo, which signs once. In another attempt of the round another set may be
answered, by silos that were not asked before; a second sum still does not open. That this is all that secrecy needs against
such a coordinator is argued, not proved (N16).

Read ``silo`` next (the rules a silo enforces), then ``coordinator``. Underneath:

``certificate``   what silos sign about the survivors, and when it is enough
``answering``     the states of a silo
``collecting``    the states of the coordinator
``graph``         who shares masks and secrets with whom, and with how many
``parameters``    thresholds and encoding, derived by every party from the plan
``vectors``       EncodedUpdate -> MaskedUpdate -> MaskedSum -> AggregateSum, a type per visibility
``packing``       ring words in exactly the bits they need
``segments``      further integer vectors of the same sum, each under its name and in its own width
``encoding``      floats to ring words by stochastic rounding, as they are masked, and a sum back to floats
``masking``       key schedule; masks on and off
``sharing``       shares dealt, sealed and opened
``recovering``    secrets from shares, some of which may be wrong
``silo_secrets``  what a silo keeps to itself
``attempt``       what one attempt's parties agree on; signing and opening messages under it
``messages``, ``wire``   the messages, and their strict canonical bytes
``masked_input``  the one long message, built and read in the buffer in which it travels
"""
