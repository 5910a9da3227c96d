"""Orchestration: files, enrolment and the order of work; what protocol and privacy may not touch.

``founding``           init: encode, build the cache, calibrate, write the plan and the invite
``founding_choices``   what its operator chose
``founding_checks``    what can be wrong with it and be known before a model is loaded
``option_errors``      such an error, by the name of the choice and in words
``synthetic_images``   the first cache keys: candidates, the best of them, and a record of it all
``coordinator_files``  a coordinator's directory; admit
``calibration``        noise and step length for an epsilon, from public numbers
``one_release``        the same for a release of statistics; ``grid_choices``: for a grid over alpha and beta
``chosen_pair``        the alpha and beta that such a grid chose
``enrolment``          invites, join requests and the signed roster
``joining``            join: check the invite, encode, make keys and a ledger
``silo_files``         a silo's directory, opened and checked
``shared_ledger``      which directories of one institution write into one ledger
``clip_source``        where a party has the frozen CLIP, and whether it is the pinned one
``letters``            what is said around the messages of CF-SecAgg/1
``server_steps``       from a round's mean update to the change of the cache: plain, with momentum, or FedAdam
``records``, ``chain``  verified rounds on disk, and the caches that follow from them
``applying``           what a sum makes of the cache: moved keys, sums of a release beside them, or another alpha and beta
``coordinator_round``  one round at the coordinator: hello, sync, the six exchanges of CF-SecAgg/1, record
``silo_round``         the same at a silo: check, reserve, train, seal, mask, answer, verify
``rounds``             the loop over rounds, for any transport
``sealed_update``      a noised update on disk, from training to the record
``record``             signed round records, verified in numbered steps
``budget``             what a silo has spent and what is left
``witnesses``          what others hold of a silo's ledger
``forecasting``        what a plan's rounds will cost in privacy
``inspection``         status and audit: what a directory can prove about itself
``accuracy``           evaluate and predict with the models of a directory
``comparison``         what privacy costs: the same training without the protocol, on data one may pool
``release_comparison``  what one release of statistics would give instead
``state_dir``          a party's directory: atomic writes, permissions, one process at a time
``ports``              the two-method interface that every transport implements

Order in a silo per attempt: reserve (fsync), train, seal the noised update, mask, send. Nothing is refunded.
"""
