"""cachefl-secure: federated fine-tuning of a CLIP cache under a secure sum and differential privacy.

Where things are, and who may import whom (an arrow is "imports"):

    cli -> transport -> federation -> { protocol -> crypto | privacy -> cache } -> plan, names, errors

``cache``       the model: keys from synthetic images, affinities, logits, accuracy
``crypto``      key agreement, derivation, signatures, AEAD, mask expansion, Shamir shares
``protocol``    one round of CF-SecAgg/1 as messages in, messages out
``privacy``     mechanism, accounting, ledger, DP-SGD through Opacus
``federation``  files, enrolment, order of work, signed round records
``transport``   bytes to peers
``embedded``    the default that needs no download: a tiny CLIP, a tiny generator, real handwriting
``datasets``    public data sets by folder, and records dealt out to silos for experiments

``plan`` has its sections in ``privacy_plan`` and ``server_plan``. ``lattice``, ``statistics_layout`` and ``grid_layout``
say which integers are summed. ``updates`` goes from privacy to protocol, ``durable`` is how every file is written, and
``wording`` how numbers are told. The exact layers are import-linter's, in pyproject.toml.
"""

__version__ = "0.1.0"
