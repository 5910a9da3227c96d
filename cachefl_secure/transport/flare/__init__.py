"""Live rounds over NVIDIA FLARE: mutual TLS, silos connect outwards only, payloads are opaque bytes to it.

An extra (``pip install 'cachefl-secure[nvflare]'``). Importing this package, or any of its modules but
``controller``, ``executor``, ``app_check``, ``site_requests``, ``running``, ``submitting`` and ``ending``, does not
import FLARE.

``engine``        ``parse_engine``: nvflare+grpc://host:port; ``require_nvflare``
``certificates``  X.509 as FLARE expects it: the federation's own certificate authority, requests, certificates
``kits``          what stands in the files that FLARE reads: one-entry allow-lists, nothing permitted
``enrolling``     ``found_engine``, ``approve_site``, ``request_site``, ``install_site``
``children``      processes that end with this one
``processes``     ``ServerProcess`` at the coordinator, ``SiteProcess`` at a silo
``reaching``      whether a site and the server hear each other, and which certificate is at fault
``running``       what those processes run: FLARE, less what a hostile server could reach in it
``app_check``     the only app that a site accepts, compared byte for byte
``site_requests`` how a site answers requests about jobs: only ids that are ids, only its own copy of the app
``executor``      a silo's answers: its directory, its lock, its ``SiloService``
``controller``    a channel of FLARE's tasks, with deadlines of ours
``ordered``       the coordinator's rounds over it, with every event said
``submitting``    hands an order to FLARE's server as a job
``ending``        how a child process ends
``locking``       a directory's lock, with a little patience
``reports``       what a job tells the command that asked for it: an append-only file of few kinds of lines
``rounds``        ``run_flare_rounds``

Whose files these are: everything lies below ``engine/nvflare/`` of a party's directory. What FLARE and its
processes print goes there too, for that party's operator.

    engine/nvflare/ca/        the coordinator's: certificate authority of this federation
    engine/nvflare/server/    the coordinator's: FLARE's server
    engine/nvflare/admin/     the coordinator's: what may submit jobs to it
    engine/nvflare/orders/    the coordinator's: one folder a job: what was asked for, and what came of it
    engine/nvflare/site/      a silo's: FLARE's client, with a private key that was made there

FLARE is trusted with liveness only (decision 0033). Who holds the coordinator's machine can stop rounds and see
who talks when. What the protocol says is signed above this package by the protocol itself, and its shares are
sealed. The letters around it, ``Hello``, ``Sync``, ``Standing`` and a silo's declining, are plain bytes inside
mutual TLS: the coordinator reads them anyway, and a silo believes of them only what carries a signature.
"""
