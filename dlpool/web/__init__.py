"""The HTTP side: chunked uploads, tus, the job API and the dashboard, as one WSGI application. Needs the extra ``web``."""
