"""Who may speak: identities, the site's CA, and the only door to TLS.

    authority  creates a site's CA and issues leaves            (keys and randomness)
    store      keeps CA and identity directories on disk        (files)
    identity   SPIFFE ID <-> Identity; certificate -> Identity  (pure: the judge)
    tls        ssl contexts and gRPC credentials; after a handshake, asks the judge
    floor      TLS 1.3 as the minimum, also inside gRPC

    authority -> store -> tls -> (handshake) -> identity.authenticate -> Identity

Importing this package holds the TLS floor: that has to happen before grpc is loaded (see floor).
"""

from certs import floor

floor.hold()
