"""Migrations, as the gateways see them.

states        the one table of states and the ways between them (pure)
preflight     why a migration would not work (pure)
ledger        the migrations this gateway knows, durable, and who watches them
inventory     what is where: hosts, VMs, sites
coordinator   at the source's site: runs each migration through the table
succession    which gateway of the site runs which of them, and takes over from one that has died
incoming      at the destination's site: does what the coordinator of another site asks, for its own migrations
"""
