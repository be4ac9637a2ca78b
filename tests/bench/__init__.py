"""Figures, side by side with the alternative; each bench is a program that takes `--json`.

    move         a guest's move through Landbridge, and by libvirt alone
    wan          moves of several kinds of guests over a WAN, beside QEMU's own ways to spare time or bytes
    disk         moves of a guest that writes its disk all the time, by libvirt and through Landbridge
    tunnel       a stream through our chain of processes: goodput, link use, memory; and through plain relays or TCP
    byte_path    the plain relays themselves, by the way in which they move bytes
    audit        the audit log: appending for good, and verifying

    stage        where the four processes between two hosts run          relay    one plain process
    transfer     feeds a stream at one end, counts it at the other       plain    chains of them
    chain        our gateways, and our agents' relays without libvirt
    workloads    what `wan` moves, and what each must show            direct   libvirt's ways of moving
    limited      moves with a limit

A stream goes from one UNIX socket to another, whatever is between: relays, a TCP connection, our chain.
"""
