"""Landbridge where Debian 13 runs it: libvirt 11.3, QEMU 10.0 and Python 3.13, of which the normal tests only replay recordings.

`python -m tests.trixie` makes the root (tests/lab/root.py), runs all parts, and prints a table; it exits with 1 on any miss.

    units       the tests of tests/unit and tests/property, by the root's Python
    contract    what an agent needs of a hypervisor (tests/contract), by the root's libvirtd
    pair        both sites on Debian 13: there and back under load, given up in either phase, the calls that came through
    attacks     `tests.attack` against the root's libvirtd
    mixed       Debian 12 to 13 and back; a machine type that Debian 12 does not know is refused before anything begins
"""
