"""Migrations, as the gateways see them.

states        the one table of states and the ways between them (pure)
policy        how long the guest may stand still, and what is done if that cannot be had (pure)
preflight     why a migration would not work (pure)
savings       what the tunnel's codec has saved, over several gateways' counting (pure)
estimate      what a migration will take (pure)
proof         whether the disks at both ends are equal, and what follows from it (pure)
proofs        has both ends hash their disks
ledger        the migrations this gateway knows, durable, and who watches them
recording     what the audit log says of them, before anything follows from it
outages       when the tunnels to other sites come and go, for the audit log
receipts      what the audit logs of both sites say of one, in one file
inventory     what is where: hosts, VMs, sites
coordinator   at the source's site: what operators ask of them
runs          at the source's site: runs each migration through the table, with the steps of
  moving        until the source has released the VM
  resolving     after trouble: who has it?
  arriving      once the source has released it
leaving       a source host that cannot know it is told that the VM has left
steps         what the steps have in common
wan_counts    what was sent over the WAN, in the row
succession    which gateway of the site runs which of them, and takes over from one that has died
incoming      at the destination's site: does what the coordinator of another site asks, for its own migrations
"""
