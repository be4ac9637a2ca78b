"""Identities that live: who may speak at this site, and until when.

records     tables in the gateway's store, which the gateways of a site share     (store)
issuing     this gateway's issuer: signs its own leaf, and its hosts' requests
enrolment   single-use tokens, by which a host gets its first certificate
trusting    rounds: what was revoked, whom to believe, which hosts and sites there are; told to and by other sites
joining     another site's root, looked at before it is believed
departing   the way out again: a host is removed, a site is left
neighbours  whom this gateway reaches, as hosts and sites come and go

operator -> service -> enrolment | joining | departing -> records <- trusting -> LivingIdentity, neighbours -> tunnels, inventory
"""
