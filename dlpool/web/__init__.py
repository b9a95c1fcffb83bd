"""The HTTP server of uploads, the job API and the dashboard (extra ``web``).

``dlpool-web`` runs a gunicorn process and its worker processes. In a worker, the main
thread receives request heads, pool threads handle requests, and janitor, auditing,
event_publisher, lingering_close and jwks have threads of their own.

Read the modules in this order:

- application: app (the WSGI application), wiring (composition root: the services that
  the resources of a process share), middleware (every request: authentication, rate
  limit, log), error_handlers and errors (responses to errors)
- uploads: uploads (chunks, merges and tasks) with forms and upload_json; tus with
  tus_headers; files (downloads of published files)
- job API: operations (the table of its operations), jobs_api (adds their routes),
  queue_service (executes them), schemas and validation (check requests),
  circuit_breaker (rejects requests at once while Redis does not respond)
- OpenAPI document: openapi, with openapi_elements, openapi_uploads, openapi_tus,
  openapi_monitoring and openapi_scopes
- monitoring: monitoring (probes, health, system, metrics), exposition (Prometheus
  format), counters (shared by all processes), dashboard
- access: auth, keyring (named keys), tokens, public_keys and jwks (JSON web tokens),
  principal (the client and its scopes), same_origin (cross-site requests), auditing
  (audit events)
- limits of bodies and clients: body, body_slots, body_timeouts, client_limits
- server: gunicorn_adapter, head_receiver, request_pools, raw_responses,
  lingering_close, capacity (the numbers of processes and threads)
- periodic work: janitor, disk_monitor, event_publisher (upload events to Redis)
"""
