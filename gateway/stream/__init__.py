"""How frames between two gateways are made small: pages that the other gateway has, or that have hardly changed, are not sent.

page_log    the pages that both gateways have seen, in one file: a ring of what this one sent, a ring of what the other did
log_state   what one gateway tells the other of its page log, when they meet
ring        one of them: which serials are in which slots
index       where in the file the page may be that has a hash
dedup       the history: which page is already there, by its contents or by its key, and whether both gateways have it
tally       what became of the bytes
skeleton    a frame's pages, found by hints, and the bytes around them
delta       pages that have hardly changed
compress    zstd, and what is not worth it
blob        what goes on the wire for a frame
classify    what becomes of each page
pipeline    frame -> blob -> frame: the two ends of the way

A frame refers only to pages that the other gateway has acknowledged. So each can be decoded alone, on arrival, in any order, and one
that is lost costs no more than its new pages' use. What is in the log costs or saves bytes; it is never needed for a right result:
each coded frame has a checksum, and if that does not match, both ends forget the log.
"""
