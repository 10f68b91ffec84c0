"""What went wrong is read from the words of a library's error, and not from numbers that happen to be in it."""

import pytest

from lazypert.errors import AccessDeniedError, StorageError
from lazypert.store.object_errors import may_pass, object_error

SENT = "Generic S3 error: Error performing GET {url} in {time} - HTTP error: error sending request"
STATUS = "Generic S3 error: Error performing GET http://host/b/k in 3ms - Server returned non-2xx status code: {status}"


@pytest.mark.parametrize("url", ["http://host:403/bucket/k", "http://host/bucket/301/c/403", "http://host/b?part=401"])
@pytest.mark.parametrize("time", ["301.935\u00b5s", "403ms", "401 s", "404.1s"])
def test_numbers_in_addresses_and_times_are_no_status(url, time):
    error = OSError(SENT.format(url=url, time=time))
    assert may_pass(error)
    found = object_error("s3://bucket/s.zarr", "k", error)
    assert type(found) is StorageError
    assert "does not mean that it is damaged" in str(found)


@pytest.mark.parametrize(
    ("status", "kind", "says", "passes"),
    [
        ("403 Forbidden", AccessDeniedError, "access is denied", False),
        ("301 Moved Permanently", StorageError, "another region", False),
        ("503 Slow Down", StorageError, "try again", True),
        ("429 Too Many Requests", StorageError, "try again", True),
    ],
)
def test_a_status_is_understood(status, kind, says, passes):
    error = OSError(STATUS.format(status=status))
    assert may_pass(error) == passes
    found = object_error("s3://bucket/s.zarr", "k", error)
    assert type(found) is kind
    assert says in str(found)


def test_the_address_of_the_metadata_service_tells_that_there_are_no_credentials():
    error = OSError("Error performing PUT http://169.254.169.254/latest/api/token in 2.1s - error sending request")
    assert "no credentials were found" in str(object_error("s3://bucket/s.zarr", "k", error))
