"""The gateway: at a site's edge, it coordinates migrations and carries the channels between the sites' agents.

    main          wiring only
    cli           the landbridge command: one file per verb, speaking to a gateway like any other client
    service       landbridge.v1.Gateway for operators, landbridge.v1.Peer for other gateways; thin
    migration     states (the one table), preflight (pure), coordinator (calls agents and peers)
    tunnel        links with other gateways, and the channels that pass between them and this site's agents
    remote        calls to agents and peers, with deadlines and errors of our tree
    store         what must not be forgotten; the gateways of one site share it

Control:  operator -> service -> coordinator -> agents here, and the peer gateway -> agents there
Bytes:    agent here -> its link -> pump -> tunnel (several links) -> pump there -> a link -> agent there
"""

import certs as certs  # holds the TLS floor, which must come before grpc is loaded
