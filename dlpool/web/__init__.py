"""Serve uploads, the job API and the dashboard over HTTP (extra ``web``).

Read in this order: app (the WSGI application), wiring (composition root: what the
resources of a process share), middleware (every request: authentication, rate, log),
then a protocol: uploads (chunks and tasks), tus, files (downloads of published files),
jobs_api, or monitoring (probes, metrics). The job API is one table, operations, which
queue_service executes and openapi describes. errors and error_handlers answer errors;
auth, tokens, jwks and keyring check keys. gunicorn_adapter, head_receiver and
request_pools run the server; body, body_slots, body_timeouts and client_limits bound
what clients may take.

``dlpool-web`` runs a gunicorn process and its worker processes. In a worker, the main
thread receives request heads, pool threads handle requests, and single threads run
janitor, event_publisher, lingering_close and jwks.
"""
