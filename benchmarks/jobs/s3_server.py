"""An S3 server in memory (moto's) that counts what is fetched of checkpoints.

python s3_server.py PORT

`GET /-/fetched` answers with the bytes so far, without manifests and other records.
"""

import sys

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple


class Counting:
    """Passes every request on."""

    def __init__(self, application):
        self._application = application
        self._fetched_bytes = 0

    def __call__(self, environ, start_response):
        """Answers one request, as WSGI has it."""
        path = environ["PATH_INFO"]
        if path == "/-/fetched":
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [str(self._fetched_bytes).encode()]

        def start(status, headers, *more):
            is_file = "/checkpoint_" in path and not path.rpartition("/")[2].startswith(".")
            if environ["REQUEST_METHOD"] == "GET" and is_file and status.startswith("2"):
                self._fetched_bytes += int(dict(headers).get("Content-Length", 0))
            return start_response(status, headers, *more)

        return self._application(environ, start)


run_simple("127.0.0.1", int(sys.argv[1]), Counting(DomainDispatcherApplication(create_backend_app)), threaded=True)
