"""The gRPC services of a gateway: thin. `certs.guard` has settled who calls before a method here runs.

operators     landbridge.v1.Gateway -> inventory, coordinator, ledger
peers         landbridge.v1.Peer    -> incoming, inventory, identities
identities    landbridge.v1.Enrolment, Renewal, Identities -> identities
"""
