"""The way of the bytes through a gateway.

    pump      frames from the link on which a channel was opened to the link that leads on, and back
    schedule  which frame goes next into a tunnel's links, and whose agent is held back; sans-I/O
    dial      links to other sites' gateways (the tunnel), and to agents of this site

Links that agents and other gateways dial come from `certs.links.listen`, authenticated, straight to the pump.
"""
