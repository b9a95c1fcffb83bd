"""The HTTP side: chunked uploads, tus, the job API and the dashboard, as one WSGI
application (extra ``web``)."""
