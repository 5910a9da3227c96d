"""Differential privacy of one silo: what it does, what that costs, what is spent, and the training.

Adjacency everywhere: add or remove one record of one silo. Every constant that the released update
depends on is in the agreed plan; the number of records never is.

``mechanism``     sampling, clipping, noise and steps of one round, as one frozen object that all others read
``accountants``   epsilon of steps, by PLD, RDP and in closed form; ``prv`` has a fourth, for tests
``accounting``    both epsilons of a sequence of rounds; the filters by which rounds may be chosen; calibration
``terms``         what a silo has agreed to for every round of a plan
``statements``    the two sentences that may be printed
``entries``       the ledger's line format: canonical bytes, hash, signature
``verification``  numbered checks of a ledger that anybody with the public key can run; ``ledger_report`` is what they give
``ledger``        charge first, durably; then train
``commitment``    names a silo's records without showing them
``noise``         random words from AES-256-CTR, keyed by the operating system
``discrete_gaussian``  exact noise on the integers; ``discretisation``: what it costs to account for it as Gaussian
``integer_gradients``  clipped gradients as integers of exact sensitivity; ``statistics``: class sums and Gram matrix
``grid``          right answers by alpha and beta, as whole numbers of exact sensitivity
``descent``       what a round's steps move, beside the mechanism
``training``      DP-SGD on the cache; with ``optimizers``, which sum and noise its gradients, all that knows Opacus

Only ``integer_gradients``, ``statistics``, ``grid``, ``descent``, ``optimizers`` and ``training`` import torch; who
accounts or audits needs none.

The order in a silo is ``ledger.reserve`` (on disk) -> ``train_privately`` -> seal the noised update ->
``ledger.note_sent`` -> send. A retry sends the sealed update again and is not charged again.
"""
