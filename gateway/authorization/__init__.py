"""Who may do what: the policy of this site, what it says to a request, and the approvals that it waits for.

    roles       which role may make which call of landbridge.v1.Gateway: one table          pure
    patterns    names of people, places and VMs, as the policy file writes them             pure
    freezes     windows of local time, in which nothing moves                               pure
    rules       the policy file: its types and its parser                                   pure
    request     what is to be judged, and the hash that approvals are bound to              pure
    decide      rules + request + clock -> a decision that names the rule that decided      pure
    cases       the tests that a policy file carries                                        pure
    policy_file the file on this machine: read at the start, and again when it changes
    requests    requests that wait for approvals, in the store
    authority   what services and migrations ask: may this be done?

What is not permitted is refused, and a rule that forbids wins over one that permits. The destination's gateway judges what comes
by its own file; what the source's gateway says of the VM and the requester are claims to it.
"""
