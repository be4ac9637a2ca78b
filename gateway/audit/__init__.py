"""The audit log of a site: a record that nobody can rewrite unnoticed, and what proves it to others.

    landbridge.events   which events there are, each with its stable code
    canonical           JSON in the one spelling that can be hashed (RFC 8785)
    entry               one event: who, what, where, how it ended; what was seen, and what somebody only claims
    tree                Merkle tree (RFC 6962): hashes, tiles (C2SP tlog-tiles), proofs of inclusion and consistency
    note, checkpoint    signed notes and the heads of trees in them, cosigned by witnesses (C2SP)
    proof, receipt      an entry's inclusion as a file (C2SP tlog-proof); a migration's entries of both sites as one
    verify, walk        the numbered recipe by which anybody checks all of it
    reading, export     looking into a log; and its entries in the forms that others read
    storage             the directory of a log: what is durable when, and what a crash leaves
    journal, keeper     one writer for many callers, entries become durable in groups; and a log while a gateway runs
    ship*               how the log gets to those who collect logs, while it grows
    proving, files      what a log says of one migration; where verifiers read a log from
    witness*            cosigns the heads of other logs (C2SP tlog-witness): rules, records, keeper, and HTTP for strangers
    cosigning           has the other sites' witnesses cosign the heads of this log

Writing:  entry -> journal -> storage: bundles and tiles, then the checkpoint -> index
Reading:  directory or URL -> verify -> findings

Storage, journal, keeper, ship*, proving, files, keys, cosigning and what keeps a witness touch the world; all others are pure.
"""
