"""A compromised source host against the destination's libvirtd: what it tries, and that libvirtd sees nothing of it.

    attacks     the table: whom it says to be, what it is honest about before, what it sends, and what it is told
    attacker    the far end of one rpc channel, which may send any bytes; the site's gateway, which prepares it
    recorder    a socket between the agent and libvirtd, which writes down each message that libvirtd is given
    arena       the lab around all of it; `python -m tests.attack` runs the table there and prints it

`tests/unit/test_firewall.py` runs the same table without anything real, in both modes.
"""
