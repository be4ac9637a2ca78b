"""What shows that Landbridge works.

unit property       one module at a time; the tests mirror the source by name
contract            one suite for a fake and for the real thing
integration         agents and gateways on loopback, and real VMs in the lab
lab                 two sites on one machine: namespaces, libvirtd, QEMU guests, a WAN
bench               figures, side by side with the alternative
"""

import certs as certs  # holds the TLS floor, which must come before grpc is loaded
