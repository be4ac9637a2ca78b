"""The log in the forms that others read. All but pdf are pure: entries in, text or files out.

plain        jsonl (the entries as they were recorded), csv (for a spreadsheet), syslog (RFC 5424)
ocsf         events of the Open Cybersecurity Schema Framework, for a SIEM
report       one HTML page for people: exceptions first, then each transfer, then how to verify it
pdf          the same page for printers
controls     which field answers which requirement of which framework, and which requirement none
requirements entries arranged by that: a part of the report, and a table
bundle       entries with all that proves them, and how to check that
standalone   the checker in a bundle: one file that needs nothing of ours
"""
