"""The names of persidict's module `basic_s3_dict`."""

from typing import Any

from ...mapping.family import BasicS3Dict


def not_found_error(error: Any) -> bool:
    """Tell whether a ClientError of botocore says that something is absent."""
    return _status(error) == 404 or _code(error) in ("NoSuchKey", "NoSuchBucket", "NotFound", "404")


def conditional_request_failed(error: Any) -> bool:
    """Tell whether a ClientError of botocore says that a condition did not hold."""
    return _status(error) in (409, 412) or _code(error) in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")


def not_modified_error(error: Any) -> bool:
    """Tell whether a ClientError of botocore says that nothing has changed."""
    return _status(error) == 304 or _code(error) in ("NotModified", "304")


def _status(error: Any) -> Any:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")


def _code(error: Any) -> Any:
    return error.response.get("Error", {}).get("Code")


__all__ = ["BasicS3Dict", "conditional_request_failed", "not_found_error", "not_modified_error"]
