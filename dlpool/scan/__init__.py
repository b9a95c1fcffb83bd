"""The scan of complete files for malware before they are published.

Read in this order: ``guard`` (what a scan result leads to), ``clamd`` and ``command``
(the two scanners), ``result`` (what a scanner found), ``scannedfile`` (the file under
scan), ``deadline`` (time limit and abort), ``quarantine`` (where infected files are
kept). A scan runs on the thread that publishes the file. For a download, this thread is
in a worker process or an engine; for an upload, in a web worker. ``dlpool quarantine``
uses only ``quarantine``.
"""
