"""Computes exact attention of NumPy arrays on an attnd server.

    with attnd.Client('127.0.0.1:50051') as client:
      result = client.attention(q, k, v, causal='bottom_right', timeout=5)
      result.output  # an array like q

`AsyncClient` has the same calls for asyncio. Every field of AttentionOptions in
attnd/v1/attention.proto is a keyword argument of the attention calls. If the server
refuses a call, the client raises an AttndError that names the field. `merge` combines
attention over parts of the keys.
"""

from attnd.access import TLS
from attnd.calls import AttentionResult, Gradients
from attnd.clients import AsyncClient, Client
from attnd.errors import (AttndError, Cancelled, DeadlineExceeded,
                          FailedPrecondition, FieldViolation, Internal,
                          InvalidArgument, NotFound, PermissionDenied,
                          ResourceExhausted, Unauthenticated, Unavailable,
                          Unimplemented)
from attnd.merge import merge
from attnd.retry import RetryPolicy
from attnd.shared_memory import RegionRefused, SharedRegion

__all__ = [
    'AsyncClient', 'AttentionResult', 'AttndError', 'Cancelled', 'Client',
    'DeadlineExceeded', 'FailedPrecondition', 'FieldViolation', 'Gradients',
    'Internal', 'InvalidArgument', 'NotFound', 'PermissionDenied',
    'RegionRefused', 'ResourceExhausted', 'RetryPolicy', 'SharedRegion', 'TLS',
    'Unauthenticated', 'Unavailable', 'Unimplemented', 'merge'
]
