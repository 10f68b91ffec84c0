"""An S3 server on loopback that notes every request, and can be stopped and started again."""

import contextlib
import functools
import threading

OPTIONS = {"key": "testing", "secret": "very-secret"}


class S3Server:
    """A moto server with an empty bucket called ``bucket``; its content stays when it is stopped.

    Attributes
    ----------
    requests
        Method, path and range of each request, in their order.
    on_request
        Called with method and path before a request is answered; may raise.
    """

    def __init__(self):
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler

        self.requests, self.on_request = [], None
        application = DomainDispatcherApplication(create_backend_app)
        # It lists a folder for every request, which takes as long as the answer.
        application.get_backend_for_host = functools.cache(application.get_backend_for_host)

        class Quiet(WSGIRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_request(self, *_):
                pass

        def answer(environ, start_response):
            method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
            self.requests.append((method, path, environ.get("HTTP_RANGE")))
            if self.on_request is not None and self.on_request(method, path):
                start_response("503 Service Unavailable", [("Content-Length", "0")])
                return [b""]
            return application(environ, start_response)

        self._answer, self._handler, self._port = answer, Quiet, 0
        self.start()
        self.client.create_bucket(Bucket="bucket")
        self.clear()  # moto keeps what an earlier server of this process had

    def start(self):
        from werkzeug.serving import make_server

        self._server = make_server("127.0.0.1", self._port, self._answer, threaded=True, request_handler=self._handler)
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def options(self):
        return {**OPTIONS, "endpoint_url": f"http://127.0.0.1:{self._port}"}

    @property
    def impatient(self):
        """Options that give up after a few requests that fail."""
        return {**self.options, "max_retries": 1, "request_timeout": 10}

    @functools.cached_property
    def client(self):
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.options["endpoint_url"],
            aws_access_key_id="testing",
            aws_secret_access_key="very-secret",
            region_name="us-east-1",
        )

    def objects(self, prefix):
        """Bytes of all objects below a prefix of the bucket."""
        found = {}
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=prefix):
            for item in page.get("Contents", []):
                body = self.client.get_object(Bucket="bucket", Key=item["Key"])["Body"]
                found[item["Key"].removeprefix(prefix)] = body.read()
        return found

    def clear(self):
        """Delete all objects, and forget the requests."""
        while found := self.client.list_objects_v2(Bucket="bucket").get("Contents"):
            keys = [{"Key": item["Key"]} for item in found]
            self.client.delete_objects(Bucket="bucket", Delete={"Objects": keys})
        self.requests.clear()

    def upload(self, path, key):
        self.client.upload_file(str(path), "bucket", key)
        return f"s3://bucket/{key}"

    def bytes_read(self, path, size):
        """Bytes that ranges of a file were asked for."""
        total = 0
        for method, requested, span in self.requests:
            if method == "GET" and requested.endswith(path):
                first, last = (span or f"bytes=0-{size - 1}").removeprefix("bytes=").split("-")
                total += int(last) - int(first) + 1
        return total

    @contextlib.contextmanager
    def answering(self, on_request):
        self.on_request = on_request
        try:
            yield
        finally:
            self.on_request = None
