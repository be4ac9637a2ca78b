"""The agent: on each host, it executes what this site's gateways ask for, and moves the bytes of this host's VMs.

    service -> source | destination -> hypervisor       what is asked, one end of a migration, who does it
    channels                                            where this host's channels begin and end, and by which gateway
    preparing, admission, refusals                      what a destination takes in: VMs, channels, calls
    relay -> calls | pages, farewell                    one channel: a socket of libvirt or QEMU <-> a link to a gateway
    traffic                                             all channels of a migration, and the gate at their end
    disk_proof -> disk_hash                             whether what is stored is what was stored at the switch-over
    journal                                             what a killed agent left on this host
    main                                                wiring only

At the source:       prepare (sockets) -> start (the hypervisor moves) -> released | failed
At the destination:  prepare (images) -> arrived (whole, paused) -> active | failed (nothing is left)
"""

import certs as certs  # holds the TLS floor, which must come before grpc is loaded
