"""AttentionService of attnd/v1/attention.proto for gRPC, under the names that
grpc_tools would give. Made from descriptors for the reason in attention_pb2.py."""

import grpc

from attnd.v1 import attention_pb2 as pb

_SERVICE = pb._FILE.service[0]  # pylint: disable=protected-access


def _path(method):
  return f'/{pb.DESCRIPTOR.package}.{_SERVICE.name}/{method.name}'


def _kind(method):
  """As gRPC names it: "unary_stream"."""
  return '_'.join('stream' if streaming else 'unary' for streaming in
                  (method.client_streaming, method.server_streaming))


def _message(type_name):
  return getattr(pb, type_name.rpartition('.')[2])


class AttentionServiceStub:
  """Has a callable of the channel, grpc's or grpc.aio's, for each method."""

  def __init__(self, channel):
    for method in _SERVICE.method:
      setattr(self, method.name, getattr(channel, _kind(method))(
          _path(method),
          request_serializer=_message(method.input_type).SerializeToString,
          response_deserializer=_message(method.output_type).FromString))


class AttentionServiceServicer:
  """To be derived from by a server in Python; has no method by itself."""


def add_AttentionServiceServicer_to_server(servicer, server):
  """Serves those methods that the servicer has; others are UNIMPLEMENTED."""
  server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(
      f'{pb.DESCRIPTOR.package}.{_SERVICE.name}', {
          method.name: getattr(grpc, _kind(method) + '_rpc_method_handler')(
              getattr(servicer, method.name),
              request_deserializer=_message(method.input_type).FromString,
              response_serializer=_message(
                  method.output_type).SerializeToString)
          for method in _SERVICE.method if hasattr(servicer, method.name)
      }),))
