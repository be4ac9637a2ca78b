"""The audit log of a site: a record that nobody can rewrite unnoticed, and what proves it to others.

    landbridge.events   which events there are, each with its stable code
    canonical           JSON in the one spelling that can be hashed (RFC 8785)
    entry               one event: who, what, where, how it ended; what was seen, and what somebody only claims
    tree                Merkle tree (RFC 6962): hashes, tiles (C2SP tlog-tiles), proofs of inclusion and consistency
    note, checkpoint    signed notes and the heads of trees in them, cosigned by witnesses (C2SP)
    proof               one entry's inclusion as a file (C2SP tlog-proof)
    verify              the numbered recipe by which anybody checks all of it
    storage             the directory of a log: what is durable when, and what a crash leaves
    journal             one writer for many callers: entries become durable in groups

Writing:  entry -> journal -> storage: bundles and tiles, then the checkpoint -> index
Reading:  directory or URL -> verify -> findings

Only storage and journal touch the world; all others are pure.
"""
