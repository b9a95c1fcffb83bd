"""Check files for malware before they get their names: a scanner, and the quarantine
for what it finds."""
